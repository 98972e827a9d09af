"""Makes a package callable as the function of its name: both `pangu_ms.train.loop` and `pangu_ms.train(config, ...)`
work."""

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that, when called, calls the function of the same name in `pangu_ms.api`."""

    @property
    def __signature__(self) -> inspect.Signature:
        """What `help` and `inspect.signature` show: the function's."""
        return inspect.signature(self._function())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function()(*args, **kwargs)

    def _function(self) -> Callable[..., Any]:
        return getattr(importlib.import_module("pangu_ms.api"), self.__name__.rpartition(".")[2])


def make_callable(package: str) -> None:
    """Make a package callable. Python binds a subpackage to its name in `pangu_ms` when it is first imported, so
    whether a function of that name is visible would depend on the order of imports."""
    sys.modules[package].__class__ = CallablePackage
