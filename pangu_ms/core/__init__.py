"""The lowest layer: errors, atomic file writes, the terminal, progress bars, caches.

Every other package may import it. No mindspore import.
"""
