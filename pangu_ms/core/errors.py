"""Errors that a user can cause and mend: the command line shows their text on one line and exits with 2.

Their text has the form "where: what was found; the rule; what to do".
"""


class UserError(ValueError):
    """A mistake in what the user gave; every error class of the project is one."""


class OutputError(UserError):
    """A place that cannot be written: it has other content, or the disk is full."""


class RankTableError(UserError):
    """A rank table, or the addresses that one is made from."""


class LaunchError(UserError):
    """A job that cannot be started, or a job directory that is none."""


class ConfigError(UserError):
    """A configuration key or value."""


class DataError(UserError):
    """A corpus, tokenizer or record file."""


class CheckpointError(UserError):
    """A checkpoint, converted file or its names and shapes."""


class PlanError(UserError):
    """A parallel plan, a strategy file, or a rehearsal that cannot be done here."""


class ExportError(UserError):
    """A MindIR package."""


class GenerationError(UserError):
    """A prompt or a sampling option."""


class TrainingDiverged(UserError):
    """Training stopped by its guard after too many skipped steps."""
