"""PanGu-pi, LLaMA and openPangu-Embedded."""
