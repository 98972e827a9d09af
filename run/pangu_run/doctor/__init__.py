"""Checks of `pangu doctor`: what is wrong with a host, its devices, network and disks, and how to fix it. Useful
without an NPU, too."""
