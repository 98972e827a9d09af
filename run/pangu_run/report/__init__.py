"""Jobs looked at from outside: status and logs."""
