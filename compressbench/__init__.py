"""Recipes of pruning, quantization and distillation, measured on the exported file.

>>> import compressbench
>>> result = compressbench.compress(model, (train, test), recipe="prune_then_quant")
>>> run = compressbench.load(result.folder)
>>> table = compressbench.front("NAME")
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded when they are first asked for: this file counts in the content key of every stage, and so
# would all that it imports by name. Their types are in __init__.pyi.
_WHERE = {
    "compress": "api.compress",
    "Result": "api.compress",
    "load": "api.load",
    "Run": "api.load",
    "front": "api.front",
    "front_picture": "api.front",
    "FrontPicture": "api.front",
    "UserError": "core.errors",
    "CheckFailedError": "core.errors",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
