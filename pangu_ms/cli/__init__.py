"""The command line, with one module per verb. Only this folder parses arguments."""
