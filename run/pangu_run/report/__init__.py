"""Reports on a job, read from its directory: status, logs, and errors with explanations."""
