"""Labels of what is computed element by element, and of joins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compressbench.core.calls import tensors_in
from compressbench.pruning.channels.labels import FREE
from compressbench.pruning.channels.shadows import Call, Operand, Shadows


def elementwise(shadows: Shadows, call: Call) -> None:
    """Unite the labels of all tensors at the same position after broadcasting."""
    operands = [shadows.operand(t) for t in tensors_in([*call.args, *call.kwargs.values()])]
    result = combine(shadows, operands, call)
    for output in tensors_in([call.output]):
        shadows.put(output, result)


def same(shadows: Shadows, call: Call) -> None:
    """The labels of the first tensor."""
    first = next(iter(tensors_in([*call.args, *call.kwargs.values()])))
    for output in tensors_in([call.output]):
        shadows.put(output, shadows.of(first))


def free(shadows: Shadows, call: Call) -> None:
    """New values, of a size that follows from others or is fixed: no labels."""
    for output in tensors_in([call.output]):
        shadows.constant(output)


def unknown(shadows: Shadows, call: Call) -> None:
    """Nothing is known of the function: all labels that it reads are fixed."""
    tensors = tensors_in([*call.args, *call.kwargs.values()])
    if not tensors:
        return free(shadows, call)
    label = shadows.fix(tensors, f"its channels enter {call.what}, which cannot be followed")
    for output in tensors_in([call.output]):
        shadows.constant(output, label)
    return None


def assigned(shadows: Shadows, call: Call) -> None:
    """x[index] = y: the labels of y are those of the part of x."""
    target, index, value = call.args
    if not isinstance(value, Tensor):
        return
    part = shadows.of(target).expand(target.shape)[index]
    shape = tuple(target[index].shape)
    combine(shadows, [Operand(shadows.compress(part), shape), shadows.operand(value)], call)


def aligned(operands: Sequence[Operand]) -> list[Operand]:
    """Operands with leading axes of size 1, so that all have equally many."""
    rank = max(len(operand.shape) for operand in operands)
    result = []
    for operand in operands:
        ones = [1] * (rank - len(operand.shape))
        shadow = operand.shadow.reshape(*ones, *operand.shadow.shape)
        result.append(Operand(shadow, (*ones, *operand.shape)))
    return result


def combine(shadows: Shadows, given: Sequence[Operand], call: Call) -> Tensor:
    """The shadow of values that are combined by broadcasting.

    An operand of size 1 along the labelled axis is broadcast along it, and imposes nothing. Labels
    along two different axes would need two for one value, as in an outer product: all are fixed.
    """
    operands = aligned(given)
    bound = [o for o in operands if not shadows.labels.raw(o.shadow)]
    raws = [o for o in operands if shadows.labels.raw(o.shadow) and _labelled(o)]
    axes = {axis for operand in bound for axis in shadows.varying(operand.shadow)}
    if len(axes) > 1:
        reason = f"its channels are combined with other channels, each with each ({call.what})"
        for operand in operands:
            shadows.labels.fix(operand.shadow, reason)
        return torch.full([1] * len(operands[0].shape), shadows.labels.fixed(reason))
    if axes:
        return _along(shadows, operands, axes.pop())
    if bound:
        return _beside_fixed(shadows, raws, bound)
    return _of_raws(shadows, raws, operands)


def _labelled(operand: Operand) -> bool:
    return bool((operand.shadow != FREE).any())


def _along(shadows: Shadows, operands: Sequence[Operand], axis: int) -> Tensor:
    """The result of operands of which some have labels along `axis`."""
    size = max(operand.shape[axis] for operand in operands)
    shape = [size if a == axis else 1 for a in range(len(operands[0].shape))]
    result = None
    for operand in operands:
        if operand.shape[axis] != size or not _labelled(operand):
            continue
        if result is None and not shadows.labels.raw(operand.shadow):
            others = [a for a in range(len(shape)) if a != axis]
            result = shadows.unite_along(operand.shadow, others).expand(shape)
    assert result is not None
    for operand in operands:
        if operand.shape[axis] == size:
            shadows.labels.unite(operand.shadow, result)
    return result


def _beside_fixed(shadows: Shadows, raws: Sequence[Operand], bound: Sequence[Operand]) -> Tensor:
    """The result where all labels are fixed but those of raw parameters."""
    held, loose = False, None
    for raw in raws:
        for other in bound:
            spans = any(a > 1 and a == b for a, b in zip(raw.shape, other.shape, strict=True))
            if spans:
                shadows.labels.unite(raw.shadow, other.shadow)
                held = True
        loose = raw.shadow if loose is None else loose
    return bound[0].shadow if held or loose is None else loose


def _of_raws(shadows: Shadows, raws: Sequence[Operand], operands: Sequence[Operand]) -> Tensor:
    if not raws:
        return torch.full([1] * len(operands[0].shape), FREE)
    first = raws[0].shadow
    for raw in raws[1:]:
        shadows.labels.unite(raw.shadow, first)
        sizes = zip(first.shape, raw.shadow.shape, strict=True)
        first = first.expand([max(pair) for pair in sizes])
    return first


def joined(shadows: Shadows, call: Call) -> None:
    """Concatenation along an axis (`cat`) or a new one (`stack`)."""
    tensors = list(call.argument(0, "tensors"))
    axis = call.argument(1, "dim", call.kwargs.get("axis", 0))
    operands = [shadows.operand(t) for t in tensors if t.numel()]
    rank = call.output.ndim
    axis %= rank
    if call.name == "stack":
        operands = [
            Operand(o.shadow.unsqueeze(axis), (*o.shape[:axis], 1, *o.shape[axis:]))
            for o in operands
        ]
    shadows.put(call.output, join(shadows, operands, axis, call))


def join(shadows: Shadows, operands: Sequence[Operand], axis: int, call: Call) -> Tensor:
    """The shadow of operands one behind the other along `axis`."""
    bound = [o for o in operands if not shadows.labels.raw(o.shadow)]
    axes = {a for operand in bound for a in shadows.varying(operand.shadow)}
    if axes - {axis}:  # labels along another axis: the same for all
        reason = f"its channels are joined along another axis ({call.what})"
        others = [Operand(_single(shadows, o, axis, reason), _one(o.shape, axis)) for o in operands]
        return combine(shadows, others, call)
    if not bound:
        return _raw_join(operands, axis)
    if not axes:
        for operand in operands:
            shadows.labels.unite(operand.shadow, bound[0].shadow.reshape(-1)[0])
        return bound[0].shadow
    parts = []
    for operand in operands:
        shadow = operand.shadow
        if shadows.labels.raw(shadow):
            shadow = shadows.unite_along(shadow, [a for a in shadows.varying(shadow) if a != axis])
        sizes = [operand.shape[axis] if a == axis else 1 for a in range(shadow.ndim)]
        parts.append(shadow.expand(sizes))
    return torch.cat(parts, axis)


def _raw_join(operands: Sequence[Operand], axis: int) -> Tensor:
    rank = len(operands[0].shape)
    full = [max(o.shadow.shape[a] for o in operands) for a in range(rank)]
    return torch.cat(
        [
            o.shadow.expand([o.shape[a] if a == axis else full[a] for a in range(rank)])
            for o in operands
        ],
        axis,
    )


def _single(shadows: Shadows, operand: Operand, axis: int, reason: str) -> Tensor:
    shadow = operand.shadow
    if shadow.shape[axis] > 1 and not shadows.labels.raw(shadow):
        shadows.labels.fix(shadow, reason)
    return shadows.unite_along(shadow, [axis])


def _one(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return tuple(1 if a == axis else size for a, size in enumerate(shape))
