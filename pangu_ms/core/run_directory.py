"""Names in the output directory of a run that both the library and the launch layer know."""

JOB = "job"
"""Directory inside the output directory in which a launcher writes everything about a job; see
pangu_run/job_directory.py."""
