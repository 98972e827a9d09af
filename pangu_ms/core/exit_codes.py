"""Exit codes that ranks, launcher and scheduler agree on; 2 is a user's mistake, 128 + N signal N."""

EXIT_HOST = 69
"""EX_UNAVAILABLE: a host did not come or was lost."""
EXIT_PEER_LOST = 70
"""A rank ends with this code where it has lost another one: it is not the cause."""
EXIT_STOPPED = 75
"""EX_TEMPFAIL: the job was told to stop and has saved its state; a scheduler should start it again."""
EXIT_HANG = 124
"""A rank hung; `timeout` of coreutils has the same code."""
