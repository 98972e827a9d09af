"""Benchmark tasks: each is a YAML file that says what a model is asked and how its answers count (task.py)."""
