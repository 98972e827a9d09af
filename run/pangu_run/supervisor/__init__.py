"""Supervision of a job: starts the ranks on all hosts, watches them, finds the cause of a failure, and ends or restarts
the ranks."""
