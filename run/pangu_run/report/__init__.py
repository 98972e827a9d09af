"""What a job directory shows of a job: status, logs, errors and their meaning."""
