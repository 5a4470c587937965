"""The kinds of student, one module each, all with the same face."""
