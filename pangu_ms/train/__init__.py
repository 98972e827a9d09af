"""Training: the loop, its steps, resuming. Also the function `pangu_ms.train`."""

from pangu_ms.core.callable_package import make_callable

make_callable(__name__)
