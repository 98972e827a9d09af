"""The verbs of the launch layer."""
