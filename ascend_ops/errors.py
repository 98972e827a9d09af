"""Errors of operators. No mindspore here."""


class OperatorError(ValueError):
    """An operator was called with inputs that it does not support, or a backend that is not available here was
    requested.

    Its text has the form "where: what was found; the rule; what to do", on one line.
    """
