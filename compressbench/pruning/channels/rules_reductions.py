"""Labels of what runs over whole axes: reductions, softmax and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compressbench.core.calls import tensors_in
from compressbench.pruning.channels.rules_elementwise import elementwise
from compressbench.pruning.channels.shadows import Call, Shadows

_FIRST = {"norm": 2, "quantile": 2, "kthvalue": 2, "topk": 2, "renorm": 3}  # position of `dim`


def reduced(shadows: Shadows, call: Call) -> None:
    """Mean, sum, maximum, norm, ... over axes: labels along them are fixed."""
    inputs: Tensor = call.argument(0, "input")
    if call.name in ("max", "min") and isinstance(call.argument(1, "other"), Tensor):
        return elementwise(shadows, call)
    axes = _axes(call, inputs.ndim)
    shadow = _held(shadows, call, inputs, axes)
    for output in tensors_in([call.output]):
        moved = shadow
        if output.ndim != inputs.ndim:
            kept = [a for a in range(inputs.ndim) if a not in axes]
            moved = shadow.reshape([shadow.shape[a] for a in kept])
        shadows.put(output, moved)
    return None


def along(shadows: Shadows, call: Call) -> None:
    """Softmax, cumulative sums, sorting, ...: mix values along an axis, and keep the shape."""
    inputs: Tensor = call.argument(0, "input")
    shadow = _held(shadows, call, inputs, _axes(call, inputs.ndim))
    for output in tensors_in([call.output]):
        shadows.put(output, shadow)


def pooled(shadows: Shadows, call: Call) -> None:
    """Pooling and resizing: the last axes change, one by one or in windows."""
    inputs: Tensor = call.argument(0, "input")
    count = next((int(c) for c in call.name if c in "123"), inputs.ndim - 2)
    axes = list(range(inputs.ndim - count, inputs.ndim))
    shadow = _held(shadows, call, inputs, axes)
    for output in tensors_in([call.output]):
        shadows.put(output, shadow)


def across_channels(shadows: Shadows, call: Call) -> None:
    """Local response normalization: over neighbouring channels."""
    inputs: Tensor = call.argument(0, "input")
    shadows.put(call.output, _held(shadows, call, inputs, [1]))


def _held(shadows: Shadows, call: Call, inputs: Tensor, axes: Sequence[int]) -> Tensor:
    """The shadow with size 1 along `axes`; removable labels along them are fixed."""
    shadow = shadows.of(inputs)
    if any(shadow.shape[axis] > 1 for axis in axes):
        if shadows.labels.raw(shadow) and set(shadows.varying(shadow)) - set(axes):
            return shadows.unite_along(shadow, axes)
        shadows.labels.fix(shadow, f"{call.what} runs over its channels")
        shadow = shadows.of(inputs)
    for axis in axes:
        shadow = shadow.narrow(axis, 0, 1)
    return shadow


def _axes(call: Call, rank: int) -> list[int]:
    """The axes that a function runs over; all by default."""
    default = {"softmax": -1, "log_softmax": -1, "softmin": -1, "normalize": 1, "topk": -1,
               "sort": -1, "argsort": -1, "gumbel_softmax": -1,
               "median": None}  # fmt: skip
    given: Any = call.kwargs.get("dim", call.kwargs.get("axis"))
    if given is None:
        place = _FIRST.get(call.name, 1)
        if call.name == "normalize":
            place = 2
        given = call.args[place] if len(call.args) > place else None
    if given is None or isinstance(given, bool):
        given = default.get(call.name)
    if given is None or given == () or given == []:
        return list(range(rank))
    axes = [given] if isinstance(given, int) else list(given)
    return sorted({axis % rank for axis in axes})
