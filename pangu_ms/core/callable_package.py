"""A package that is also the function of its name: `pangu_ms.train.loop` and `pangu_ms.train(config, ...)`."""

import importlib
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that passes calls on to the function of its own name in `pangu_ms.api`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module("pangu_ms.api"), name)(*args, **kwargs)


def make_callable(package: str) -> None:
    """Let a package be called. Python binds a subpackage to its name in `pangu_ms` when it is first imported, so a
    function of that name would come and go with the order of imports."""
    sys.modules[package].__class__ = CallablePackage
