"""MindIR packages: write, verify, run. Also the function `pangu_ms.export`."""

from pangu_ms.core.callable_package import make_callable

make_callable(__name__)
