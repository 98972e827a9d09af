"""Parameter inheritance, studies and analyses."""
