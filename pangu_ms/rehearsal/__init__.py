"""Tests of plans without their devices: compilation for virtual ranks, and execution by CPU processes."""
