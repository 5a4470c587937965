"""Offline side: from a task and a language to a student bundle."""
