"""Errors of operators."""

from pangu_ms.core.errors import UserError


class OperatorError(UserError):
    """An operator was called with what it does not take, or a backend was asked for that is not here."""
