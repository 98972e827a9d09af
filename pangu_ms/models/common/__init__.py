"""Code that the families share: layers, loss, initialisation, the base class of configurations, and batches."""
