"""PanGu language models on MindSpore: train, evaluate, generate, export.

The functions of `pangu_ms.api` can be imported from here: `from pangu_ms import load_config, train`. Importing this
package does not import mindspore; a function imports it when it needs a device.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pangu_ms.api import (
        add_domain,
        evaluate,
        export,
        extract,
        generate,
        load_config,
        load_model,
        load_tokenizer,
        plan,
        quantize,
        search_plans,
        train,
    )

__version__ = "0.2.0"
__all__ = [
    "add_domain",
    "evaluate",
    "export",
    "extract",
    "generate",
    "load_config",
    "load_model",
    "load_tokenizer",
    "plan",
    "quantize",
    "search_plans",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public function at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name in ("train", "export"):  # packages that can be called; see core/callable_package.py
        return importlib.import_module(f"pangu_ms.{name}")
    return getattr(importlib.import_module("pangu_ms.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
