"""Training: the loop, its steps, resuming. The package is also callable as the function `pangu_ms.train`."""

from pangu_ms.core.callable_package import make_callable

make_callable(__name__)
