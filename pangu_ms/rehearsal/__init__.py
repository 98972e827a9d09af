"""Plans tried without their devices: compiled for virtual ranks, and run as CPU processes."""
