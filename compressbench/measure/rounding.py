"""How far float32 rounding can move the answers of a model.

Two correct kernels differ in the last bit of what they read and compute. Where a model divides by a
small standard deviation or subtracts numbers that are nearly equal, later layers see much more: of
a channel whose weights were pruned, a normalization sees a constant and multiplies its rounding
error by 1 / sqrt(epsilon). One computation says little about that, since a constant may be exact by
luck; so rounding errors are added at random (Monte Carlo arithmetic).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

DRAWS = 6
LAST_BITS = 2  # in units of the machine epsilon; a mean of 64 equal numbers may be off by one


def perturbed(model: nn.Module, draw: int) -> Callable[[Tensor], Tensor]:
    """The function that `model` computes, with rounding errors added to each of its steps.

    Channels are the second axis in even draws and the last axis in odd ones. The errors are the
    same in each call.
    """

    def answers(inputs: Tensor) -> Tensor:
        with _Perturbing(draw):
            result: Tensor = model(inputs)
        return result

    return answers


class _Perturbing(TorchFunctionMode):
    """Moves each result by as much as the last bits of its arguments move it.

    All values of a channel move to the same side, as they do where a mean is off.
    """

    def __init__(self, draw: int) -> None:
        super().__init__()
        self.axis = 1 if draw % 2 == 0 else -1
        self.generator = torch.Generator().manual_seed(draw)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not _computed(result, (args, kwargs)):
            return result
        moved_args, moved_kwargs = tree_map_only(Tensor, self._last_bits, (args, kwargs))
        error = (func(*moved_args, **moved_kwargs) - result).abs()
        return result + error.nan_to_num(0, 0, 0) * self._signs(result)

    def _last_bits(self, values: Tensor) -> Tensor:
        if not values.is_floating_point():
            return values
        noise = 2 * torch.rand(values.shape, generator=self.generator, dtype=values.dtype) - 1
        return values * (1 + LAST_BITS * torch.finfo(values.dtype).eps * noise)

    def _signs(self, values: Tensor) -> Tensor:
        shape = [1] * values.ndim
        shape[self.axis] = values.shape[self.axis]
        return 2 * torch.randint(0, 2, shape, generator=self.generator).to(values.dtype) - 1


def _computed(result: object, arguments: object) -> bool:
    """Whether `result` is a new float tensor with channels: no view, and nothing done in place."""
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.ndim < 2:
        return False
    given = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    memory = result.untyped_storage().data_ptr()
    return bool(given) and all(memory != one.untyped_storage().data_ptr() for one in given)
