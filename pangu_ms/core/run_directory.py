"""Names in the output directory of a run that both the library and the launch layer know."""

JOB = "job"
"""What a launcher writes of a job lies below OUTPUT/job; see pangu_run/job_directory.py."""
