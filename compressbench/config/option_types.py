"""Checks the options of a config against the type annotations of its target."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from compressbench.core.validation import shown

_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false",
          types.NoneType: "null"}  # fmt: skip
_OBJECTS = ("compressbench.", "torch.Tensor", "torch.nn.")  # classes that need a section
_PLAIN = (bool, int, float, str, list, tuple, dict, types.NoneType)


def mistyped(target: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """`NAME must be an integer or null, got 'x'` for each option of another type.

    Only annotations of plain values (numbers, text, true or false, null, and lists of them) and of
    classes are judged. A class takes no plain value: it needs a section that builds an object.
    Others, and options that are configs themselves, are the target's own business. No number is
    NaN or infinite.
    """
    yield from (f"{n} must be finite, got {shown(v)}" for n, v in options.items() if _endless(v))
    try:
        hints = get_type_hints(_signature_of(target))
    except (NameError, TypeError):  # names imported for type checkers only; built-ins
        return
    for name, value in options.items():
        kinds = _alternatives(hints.get(name))
        words = dict.fromkeys(_word(kind) or _section(kind) for kind in kinds)
        if "" not in words and not any(_fits(value, kind) for kind in kinds):
            yield f"{name} must be {' or '.join(words)}, got {shown(value)}"


def _endless(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_endless, value))
    return isinstance(value, float) and not math.isfinite(value)


def _section(kind: Any) -> str:
    """How an object of a class is given; "" for classes that plain values may stand for."""
    name = f"{kind.__module__}.{kind.__qualname__}" if inspect.isclass(kind) else ""
    return "a section with _target_" if name.startswith(_OBJECTS) else ""


def _signature_of(target: Any) -> Any:
    """What has the annotations of the options: a dataclass itself, since each of its fields is
    understood where the field is defined; of other classes `__init__`.
    """
    return target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _word(kind: Any) -> str:
    """The plain-English name of a type; "" for types that are not checked."""
    if _is_list(kind):
        return "a list" if _word(get_args(kind)[0]) else ""
    return _WORDS.get(kind, "")


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, Sequence) and len(get_args(kind)) == 1


def _fits(value: Any, kind: Any) -> bool:
    if _section(kind):
        return not isinstance(value, _PLAIN)
    if _is_list(kind):
        (element,) = get_args(kind)
        return isinstance(value, (list, tuple)) and all(_fits(v, element) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
