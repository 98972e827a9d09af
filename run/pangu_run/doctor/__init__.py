"""Checks of `pangu doctor`: they find faults of a host, its devices, network and disks, and say how to fix them. They
also work on hosts without an NPU."""
