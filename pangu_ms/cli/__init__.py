"""The command line: one module a verb. The only place that parses arguments."""
