"""Exit codes that ranks, launcher and scheduler agree on; 2 is a user's mistake, 128 + N signal N."""

EXIT_HOST = 69
"""EX_UNAVAILABLE: a host did not join the job, or was lost."""
EXIT_PEER_LOST = 70
"""A rank that has lost another rank ends with this code: it is not the cause of the failure."""
EXIT_STOPPED = 75
"""EX_TEMPFAIL: the job was asked to stop and has saved its state; a scheduler should start it again."""
EXIT_HANG = 124
"""A rank hung; `timeout` of coreutils has the same code."""
