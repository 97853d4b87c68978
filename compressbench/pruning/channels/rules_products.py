"""Labels of products of activations: matrix products, einsum and attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compressbench.pruning.channels.rules_elementwise import combine, unknown
from compressbench.pruning.channels.shadows import Call, Operand, Shadows


def matmul(shadows: Shadows, call: Call) -> None:
    """[.., i, k] times [.., k, j]."""
    one, other = call.args[:2]
    if call.name == "rmatmul":
        one, other = other, one
    if min(one.ndim, other.ndim) < 2:
        return unknown(shadows, call)
    shadows.put(call.output, _product(shadows, shadows.operand(one), shadows.operand(other), call))
    return None


def added_product(shadows: Shadows, call: Call) -> None:
    """addmm, baddbmm: a sum and a product of matrices."""
    one, other = (shadows.operand(t) for t in call.args[1:3])
    product = _product(shadows, one, other, call)
    added = Operand(product, tuple(call.output.shape))
    shadows.put(call.output, combine(shadows, [shadows.operand(call.args[0]), added], call))


def _product(shadows: Shadows, one: Operand, other: Operand, call: Call) -> Tensor:
    _contract(shadows, one, -1, call)
    _contract(shadows, other, -2, call)
    left = Operand(one.shadow.narrow(-1, 0, 1), (*one.shape[:-1], 1))
    right = Operand(other.shadow.narrow(-2, 0, 1), (*other.shape[:-2], 1, other.shape[-1]))
    return combine(shadows, [left, right], call)


def _contract(shadows: Shadows, operand: Operand, axis: int, call: Call) -> None:
    """Fix labels along an axis that is summed over: nothing says that they do not matter."""
    if operand.shadow.shape[axis] > 1:
        what = f"its channels are summed over in a product with another tensor ({call.what})"
        shadows.labels.fix(operand.shadow, what)


def attention(shadows: Shadows, call: Call) -> None:
    """Scaled dot-product attention: [.., H, T, D], [.., H, S, D], [.., H, S, E]."""
    query, key, value = (shadows.operand(call.argument(i, n)) for i, n in enumerate(
        ("query", "key", "value")))  # fmt: skip
    if query.shape[-3:-2] != key.shape[-3:-2]:  # grouped queries
        times = query.shape[-3] // key.shape[-3]
        key, value = (_repeated(operand, times) for operand in (key, value))
    turned = Operand(key.shadow.transpose(-1, -2), (*key.shape[:-2], key.shape[-1], key.shape[-2]))
    scores = _product(shadows, query, turned, call)
    shape = (*query.shape[:-1], key.shape[-2])
    mask = call.argument(3, "attn_mask")
    if isinstance(mask, Tensor):
        scores = combine(shadows, [Operand(scores, shape), shadows.operand(mask)], call)
    shadows.put(call.output, _product(shadows, Operand(scores, shape), value, call))


def _repeated(operand: Operand, times: int) -> Operand:
    shape = list(operand.shape)
    shadow = operand.shadow
    if shadow.shape[-3] > 1:
        shadow = shadow.repeat_interleave(times, -3)
    shape[-3] *= times
    return Operand(shadow, tuple(shape))


def einsum(shadows: Shadows, call: Call) -> None:
    """Products and sums named by letters."""
    equation, tensors = call.args[0], list(call.args[1:])
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        tensors = list(tensors[0])
    parsed = _parsed(equation, [t.ndim for t in tensors])
    if parsed is None:
        return unknown(shadows, call)
    terms, result = parsed
    operands = []
    for letters, tensor in zip(terms, tensors, strict=True):
        operand = shadows.operand(tensor)
        for axis, letter in enumerate(letters):
            if letter not in result:
                _contract(shadows, operand, axis, call)
        operands.append(_arranged(shadows.operand(tensor), letters, result))
    shadows.put(call.output, combine(shadows, operands, call))
    return None


def _parsed(equation: Any, ranks: list[int]) -> tuple[list[str], str] | None:
    """The letters of the operands and of the result; None if they are not plain."""
    if not isinstance(equation, str):
        return None
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms, rest = left.split(","), "0123456789"
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    terms = [t.replace("...", rest[len(rest) - n :]) for t, n in zip(terms, hidden, strict=True)]
    result = result.replace("...", rest[len(rest) - max(hidden) :])
    if not arrow or any(len(set(term)) != len(term) for term in terms):
        return None
    return terms, result


def _arranged(operand: Operand, letters: str, result: str) -> Operand:
    """The operand with its axes in the order of the result, of size 1 where it has none."""
    shadow, shape = operand.shadow, operand.shape
    for axis, letter in enumerate(letters):
        if letter not in result:
            shadow = shadow.narrow(axis, 0, 1)
    order = [letters.index(letter) for letter in result if letter in letters]
    summed = [axis for axis, letter in enumerate(letters) if letter not in result]
    moved = shadow.permute(*order, *summed).reshape([shadow.shape[a] for a in order] or [1])
    sizes = iter(order)
    places = [next(sizes) if letter in letters else None for letter in result]
    full = tuple(1 if p is None else shape[p] for p in places)
    return Operand(moved.reshape([1 if p is None else shadow.shape[p] for p in places]), full)
