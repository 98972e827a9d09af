"""A job's ranks: the device, command, environment and cores of each."""
