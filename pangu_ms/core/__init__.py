"""The ground floor: errors, whole-file writes, the terminal, progress, caches.

Everything stands on it. No mindspore import.
"""
