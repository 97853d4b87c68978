"""Brings attention into the form that the exporter supports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_AXES = 4  # batch, head, position, width


class FourAxes(TorchFunctionMode):
    """While active, attention over [N, L, E] or [L, E] runs as one over [N, 1, L, E]."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *rest: Any,
    **more: Any,
) -> Tensor:
    missing = _AXES - query.ndim
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = _with_heads(attn_mask, missing)
    query, key, value = (_with_heads(values, missing) for values in (query, key, value))
    result = F.scaled_dot_product_attention(query, key, value, attn_mask, *rest, **more)
    for _ in range(missing):
        result = result.squeeze(-3)
    return result


def _with_heads(values: Tensor, missing: int) -> Tensor:
    for _ in range(missing):
        values = values.unsqueeze(-3)
    return values
