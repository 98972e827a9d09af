"""Exit codes between ranks, launcher and scheduler; 2 is a user's mistake, 128 + N a signal."""

EXIT_HOST = 69
"""EX_UNAVAILABLE: a host did not come or was lost."""
EXIT_PEER_LOST = 70
"""A rank ends with this code where it misses another one: it is not the cause."""
EXIT_STOPPED = 75
"""EX_TEMPFAIL: stopped as asked with its state saved; a scheduler should start the job again."""
EXIT_HANG = 124
"""A rank hung, as `timeout` says it."""
