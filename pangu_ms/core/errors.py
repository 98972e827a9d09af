"""Errors that a user can cause and fix: the command line shows their text on one line and exits with 2.

Their text has the form "where: what was found; the rule; what to do".
"""


class UserError(ValueError):
    """A mistake in the user's input; the base class of all error classes of the project."""


class OutputError(UserError):
    """An output path that cannot be written: it has other content, or the disk is full."""


class NoRoom(OutputError):
    """A full disk. Nothing was committed.

    Attributes:
        path: what could not be written.
        reason: the system's words.
    """

    def __init__(self, path: object, reason: str | None, go_on: str = "run the same command again"):
        super().__init__(f"{path}: {reason}; nothing was committed; free some room and {go_on}")
        self.path, self.reason, self.go_on = path, reason, go_on

    def __reduce__(self) -> tuple[type, tuple[object, str | None, str]]:
        """For a process that hands the error to another one: by default pickle calls the class with the message."""
        return type(self), (self.path, self.reason, self.go_on)


class RankTableError(UserError):
    """A wrong rank table, or wrong addresses to make one from."""


class LaunchError(UserError):
    """A job that cannot be started, or a directory that is not a job directory."""


class ConfigError(UserError):
    """A wrong configuration key or value."""


class DataError(UserError):
    """A corpus, tokenizer or record file that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint or converted file that cannot be used, or whose names or shapes are wrong."""


class PlanError(UserError):
    """A wrong parallel plan or strategy file, or a rehearsal that cannot be done here."""


class ExportError(UserError):
    """A MindIR package that cannot be made or used."""


class GenerationError(UserError):
    """A wrong prompt or sampling option."""


class TrainingDiverged(UserError):
    """Training stopped by its guard after too many skipped steps."""
