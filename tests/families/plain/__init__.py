"""A family for a test: PanGu-alpha without its query layer, as GPT-2 is."""
