"""PanGu language models on MindSpore: train, evaluate, generate, export. Importing this package does not import
mindspore."""

__version__ = "0.2.0"
