"""`pangu doctor`: what is wrong with a host, its devices, network and disks, and the fix for each. Useful with no NPU,
too."""
