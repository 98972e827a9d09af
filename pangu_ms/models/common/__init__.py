"""What the families share: layers, loss, initialisation, and what a configuration and a batch are."""
