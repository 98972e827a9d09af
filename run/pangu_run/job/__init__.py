"""What starts where, and the command that starts it."""
