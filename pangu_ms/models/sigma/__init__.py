"""PanGu-Sigma."""
