"""Labels of moved data: the same function moves the shadow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressbench.core.calls import tensors_in
from compressbench.pruning.channels.rules_elementwise import unknown
from compressbench.pruning.channels.shadows import ELEMENTS, Call, Shadows, Width

_PIECES = ("chunk", "split", "tensor_split", "getitem", "narrow")  # by sizes that code may hold
PADDING = "its channels are combined with zeros of padding"


def moved(shadows: Shadows, call: Call) -> None:
    """Apply the function to the shadow in full size."""
    results = _applied(shadows, call)
    if results is None:
        return unknown(shadows, call)
    for output, result in zip(tensors_in([call.output]), results, strict=True):
        result = shadows.compress(result)
        if len(shadows.varying(result)) > 1 and not shadows.labels.raw(result):
            reason = f"its channels are spread over several axes ({call.name})"
            shadows.labels.fix(result, reason)
        shadows.put(output, result)
        if shadows.varying(result) and output.ndim == result.ndim and call.name in _PIECES:
            shadows.widths.append(Width(call.owner, result.reshape(-1)))
    return None


def _applied(shadows: Shadows, call: Call) -> list[Tensor] | None:
    """What the function makes of its first argument's shadow; None if that is too large."""
    data: Tensor = call.args[0] if call.args else call.kwargs["input"]
    sizes = [t.numel() for t in (data, *tensors_in([call.output]))]
    if max(sizes) > ELEMENTS:
        return None
    shadow = shadows.of(data).expand(data.shape)
    function = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}.get(call.name, call.function)
    if call.args:
        return tensors_in([function(shadow, *call.args[1:], **call.kwargs)])
    return tensors_in([function(**{**call.kwargs, "input": shadow})])


def expanded(shadows: Shadows, call: Call) -> None:
    """Expansion: a value that is repeated along an axis takes the size of what it meets."""
    data, output = call.args[0], call.output
    shadow = shadows.of(data)
    grown = output.ndim - data.ndim
    wider = any(a != b for a, b in zip(data.shape, output.shape[grown:], strict=True))
    if shadow.numel() == 1 and (wider or grown):
        return shadows.constant(output)
    shadows.put(output, shadow.reshape(*[1] * grown, *shadow.shape))
    return None


def padded(shadows: Shadows, call: Call) -> None:
    """Padding: along the labelled axis, zeros that stay; along others, with the same channels."""
    inputs, amounts = call.argument(0, "input"), list(call.argument(1, "pad"))
    shadow = shadows.of(inputs)
    if shadows.labels.raw(shadow):
        return unknown(shadows, call)
    for axis in shadows.varying(shadow):
        place = 2 * (inputs.ndim - 1 - axis)
        before, after = [*amounts[place : place + 2], 0, 0][:2]
        if (before or after) and call.argument(2, "mode", "constant") != "constant":
            return unknown(shadows, call)
        pad = [0] * (2 * (inputs.ndim - 1 - axis)) + [before, after]
        shadow = F.pad(shadow, pad, value=shadows.labels.fixed(PADDING))
    shadows.put(call.output, shadow)
    return None


def in_pieces(shadows: Shadows, call: Call) -> None:
    """chunk, split, unbind: equal pieces stay equally wide; others are fixed."""
    data: Tensor = call.args[0]
    axis = call.argument(2 if call.name != "unbind" else 1, "dim", 0) % data.ndim
    outputs = tensors_in([call.output])
    shadow = shadows.of(data)
    if shadow.shape[axis] > 1 and not shadows.labels.raw(shadow):
        if call.name == "unbind" or len({t.shape[axis] for t in outputs}) > 1:
            shadows.labels.fix(shadow, f"its channels are split in fixed pieces ({call.name})")
        else:
            _equal_pieces(shadows, shadow, axis, len(outputs))
    moved(shadows, call)


def halved(shadows: Shadows, call: Call) -> None:
    """GLU: one half of an axis gates the other."""
    data: Tensor = call.argument(0, "input")
    axis = call.argument(1, "dim", -1) % data.ndim
    shadow = shadows.of(data)
    if shadow.shape[axis] > 1:
        _equal_pieces(shadows, shadow, axis, 2)
        shadow = shadow.narrow(axis, 0, shadow.shape[axis] // 2)
    shadows.put(call.output, shadow)


def _equal_pieces(shadows: Shadows, shadow: Tensor, axis: int, count: int) -> None:
    shadows.unite_along(_split(shadow, axis, count), [axis])


def _split(shadow: Tensor, axis: int, count: int) -> Tensor:
    """The shadow with `axis` split into `count` pieces along a new axis before it."""
    return shadow.reshape(*shadow.shape[:axis], count, -1, *shadow.shape[axis + 1 :])


def indexed(shadows: Shadows, call: Call) -> None:
    """x[index]: full axes, equal pieces and steps can be followed along the labelled axis."""
    data, index = call.args
    shadow = shadows.of(data)
    axes = shadows.varying(shadow)
    if len(axes) == 1 and not shadows.labels.raw(shadow):
        _select(shadows, shadow, axes[0], _component(index, axes[0], data.ndim), call)
    moved(shadows, call)


def selected(shadows: Shadows, call: Call) -> None:
    """narrow, select, index_select along one axis."""
    data: Tensor = call.args[0]
    axis = call.argument(1, "dim") % data.ndim
    shadow = shadows.of(data)
    if shadow.shape[axis] > 1 and not shadows.labels.raw(shadow):
        taken: Any = None
        if call.name == "narrow":
            start = int(call.argument(2, "start"))
            taken = slice(start, start + int(call.argument(3, "length")))
        _select(shadows, shadow, axis, taken, call)
    moved(shadows, call)


def _component(index: Any, axis: int, rank: int) -> Any:
    """The part of an index that applies to `axis`; None if it is neither full nor a slice."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(_consumed(part) for part in parts)
    at = 0
    for part in parts:
        width = rank - taken if part is Ellipsis else _consumed(part)
        if at <= axis < at + width:
            return slice(None) if part is Ellipsis else part if isinstance(part, slice) else None
        at += width
    return slice(None)


def _consumed(part: Any) -> int:
    """The number of axes that a part of an index applies to."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return part.ndim if isinstance(part, Tensor) and part.dtype == torch.bool else 1


def _select(shadows: Shadows, shadow: Tensor, axis: int, taken: Any, call: Call) -> None:
    """Unite or fix the labels along an axis of which only `taken` is used."""
    size = shadow.shape[axis]
    if isinstance(taken, slice):
        start, stop, step = taken.indices(size)
        length = len(range(start, stop, step))
        if length == size:
            return
        if step == 1 and length and size % length == 0 and start % length == 0:
            _equal_pieces(shadows, shadow, axis, size // length)
            return
        if step > 1 and size % step == 0:
            shadows.unite_along(_split(shadow, axis, size // step), [axis + 1])
            return
    shadows.labels.fix(shadow, f"its channels are selected by their positions ({call.name})")


def from_pixels(shadows: Shadows, call: Call) -> None:
    """pixel_shuffle: r * r channels become one with more pixels, and go together."""
    inputs: Tensor = call.args[0]
    times = int(call.argument(1, "upscale_factor")) ** 2
    labels = shadows.vector(shadows.operand(inputs), -3, "its channels are shuffled to pixels")
    first = shadows.unite_along(labels.reshape(-1, times), [1])
    shadows.put(call.output, first.reshape(*[1] * (inputs.ndim - 3), -1, 1, 1))


def windows(shadows: Shadows, call: Call) -> None:
    """im2col: every channel becomes one per position in the window."""
    inputs: Tensor = call.argument(0, "input")
    labels = shadows.vector(shadows.operand(inputs), -3, "its channels are laid out in windows")
    times = call.output.shape[-2] // inputs.shape[-3]
    shape = [*[1] * (call.output.ndim - 2), -1, 1]
    shadows.put(call.output, labels.repeat_interleave(times).reshape(shape))


def from_windows(shadows: Shadows, call: Call) -> None:
    """col2im, the sum over windows."""
    inputs: Tensor = call.argument(0, "input")
    labels = shadows.vector(shadows.operand(inputs), -2, "its channels are laid out in windows")
    first = shadows.unite_along(labels.reshape(call.output.shape[-3], -1), [1])
    shadows.put(call.output, first.reshape(*[1] * (call.output.ndim - 3), -1, 1, 1))


def shuffled(shadows: Shadows, call: Call) -> None:
    """channel_shuffle: positions in all groups go together."""
    inputs: Tensor = call.args[0]
    groups = int(call.argument(1, "groups"))
    labels = shadows.vector(shadows.operand(inputs), 1, "its channels are shuffled")
    first = shadows.unite_along(labels.reshape(groups, -1), [0]).reshape(-1)
    shadows.put(
        call.output, first.repeat_interleave(groups).reshape(1, -1, *[1] * (inputs.ndim - 2))
    )


def turned(shadows: Shadows, call: Call) -> None:
    """Attributes of tensors that are tensors: .T, .mT, .data."""
    shadow, output = shadows.of(call.args[0]), call.output
    match call.name:
        case "mT" | "mH":
            shadow = shadow.transpose(-1, -2)
        case "T" | "H":
            shadow = shadow.permute(*reversed(range(shadow.ndim)))
        case "data" | "real":
            pass
        case _:
            return unknown(shadows, call)
    shadows.put(output, shadow)
    return None
