"""The student service: one language a process, all its tasks."""
