"""Starts the ranks of a job on all hosts, watches them, finds the cause of a failure, and ends or restarts them."""
