"""Labels of reshaped tensors: channels that are split over axes go by whole slices of one axis."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compressbench.pruning.channels.rules_elementwise import unknown
from compressbench.pruning.channels.shadows import ELEMENTS, Call, Shadows, Width


def reshaped(shadows: Shadows, call: Call) -> None:
    """view, reshape, unflatten: where channels are split, one of the axes is kept.

    Channels [h * d] that become [h, d] can go as whole heads (h) or as the same position in every
    head (d). `options` orders the axes by what the code says; `Shadows.choices` overrides it.
    """
    data: Tensor = call.args[0]
    if max(data.numel(), call.output.numel()) > ELEMENTS:
        return unknown(shadows, call)
    place = shadows.place(call.owner)
    full = shadows.of(data).expand(data.shape).reshape(call.output.shape)
    shadow = shadows.compress(full)
    axes = shadows.varying(shadow)
    if shadows.labels.raw(shadow):
        shadows.put(call.output, shadow)
        return None
    if len(axes) > 1:
        order = options(call, axes)
        chosen = order[shadows.choices.get(place, 0) % len(order)]
        shadows.places[place] = (len(order), shadow)
        shadow = shadows.unite_along(shadow, [a for a in axes if a != chosen])
    if shadows.varying(shadow):
        shadows.widths.append(Width(call.owner, shadow.reshape(-1)))
    shadows.put(call.output, shadow)
    return None


def options(call: Call, axes: list[int]) -> list[int]:
    """The axes by which channels may go, the most likely first.

    First come axes as long as a number of heads that the module has as an attribute, then the one
    whose size is -1, then all others, from the left; three at the left (query, key and value) are
    the last.
    """
    shape = call.output.shape
    counts = {v for n, v in vars(call.module).items() if counts_heads(n) and type(v) is int}
    free = _free_axis(call)
    left = axes[0] if len(axes) > 2 and shape[axes[0]] == 3 else -1

    def rank(axis: int) -> tuple[bool, bool, bool, int]:
        return shape[axis] not in counts, axis != free, axis == left, axis

    return sorted(axes, key=rank)


def counts_heads(name: str) -> bool:
    """Whether an attribute of this name holds a number of heads (`num_heads`, `kv_heads`)."""
    words = ("dim", "size", "width", "channel", "per", "feature")
    return "head" in name and not any(word in name for word in words)


def _free_axis(call: Call) -> int:
    """The axis of the result whose size is given as -1, or -1."""
    sizes: Any = call.args[1:]
    start = 0
    if call.name == "unflatten":
        axis = call.argument(1, "dim")
        start = axis % call.args[0].ndim
        sizes = (call.argument(2, "sizes"),)
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    sizes = list(sizes)
    return start + sizes.index(-1) if -1 in sizes else -1
