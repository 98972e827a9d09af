"""Errors of operators. No mindspore here."""


class OperatorError(ValueError):
    """An operator was called with what it does not take, or a backend was asked for that is not here.

    Its text has the form "where: what was found; the rule; what to do", on one line.
    """
