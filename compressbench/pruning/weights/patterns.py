"""Sparsity patterns: N of M inputs, and blocks of outputs by inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.layers import is_transposed


@dataclass(frozen=True)
class Inputs:
    """N:M sparsity: at most `kept` of each `group` consecutive input weights are nonzero.

    In a convolution, these are input channels of one group at the same kernel position. 2:4 is
    the pattern of Mishra et al. 2021 (arXiv:2104.08378).
    """

    kept: int
    group: int

    @property
    def sparsity(self) -> float:
        return 1.0 - self.kept / self.group

    def misfit(self, layer: nn.Module) -> str:
        """Why a layer cannot have the pattern, or ""."""
        inputs = _inputs_last(layer, layer.get_parameter("weight")).shape[-1]
        if inputs % self.group:
            return f"{self.group} does not divide its {inputs} inputs"
        return ""

    def masks(self, layer: nn.Module, scores: Tensor, zeros: Tensor) -> Tensor:
        """Mask that keeps the `kept` most important of each group; of equal ones the later."""
        ranked = _inputs_last(layer, scores.masked_fill(zeros, -torch.inf))
        groups = ranked.reshape(*ranked.shape[:-1], -1, self.group)
        order = torch.argsort(groups, dim=-1, stable=True)
        mask = torch.ones_like(groups, dtype=torch.bool)
        mask.scatter_(-1, order[..., : self.group - self.kept], False)
        mask &= groups > -torch.inf
        return _inputs_back(layer, mask.reshape(ranked.shape))


@dataclass(frozen=True)
class Blocks:
    """Block sparsity: `outputs` x `inputs` weights at one kernel position are pruned together."""

    outputs: int
    inputs: int

    def misfit(self, layer: nn.Module) -> str:
        """Why a layer cannot have the pattern, or ""."""
        rows, columns = self._axes(layer)
        if rows % self.outputs:
            return f"{self.outputs} does not divide its {rows} outputs"
        if columns % self.inputs:
            return f"{self.inputs} does not divide its {columns} inputs"
        return ""

    def sums(self, layer: nn.Module, values: Tensor) -> Tensor:
        """Sum `values`, of the weight's shape, over each block: [kernel.., rows, columns]."""
        moved = _inputs_last(layer, values)
        rows, columns = moved.shape[-2:]
        shape = (rows // self.outputs, self.outputs, columns // self.inputs, self.inputs)
        return moved.reshape(*moved.shape[:-2], *shape).sum((-3, -1))

    def spread(self, layer: nn.Module, blocks: Tensor) -> Tensor:
        """Expand values of blocks to the weight's shape: the inverse of `sums` for a mask."""
        whole = blocks.repeat_interleave(self.outputs, -2).repeat_interleave(self.inputs, -1)
        return _inputs_back(layer, whole)

    def _axes(self, layer: nn.Module) -> tuple[int, int]:
        rows, columns = _inputs_last(layer, layer.get_parameter("weight")).shape[-2:]
        return rows, columns


Pattern = Inputs | Blocks


def parse(text: str) -> Pattern:
    """Parse a pattern such as `2:4` or `4x1`. Raises UserError for other texts."""
    match = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", text) if isinstance(text, str) else None
    if match is not None:
        first, second = int(match[1]), int(match[3])
        if match[2] == ":" and 0 < first < second:
            return Inputs(first, second)
        if match[2] == "x" and first > 0 and second > 0 and first * second > 1:
            return Blocks(first, second)
    raise UserError(
        f'pattern must be N:M with 0 < N < M, such as "2:4", or a block OUTPUTSxINPUTS, such as '
        f'"4x1", got {text!r}'
    )


def _inputs_last(layer: nn.Module, weight: Tensor) -> Tensor:
    """View a weight as [kernel.., outputs, inputs]."""
    moved = weight.transpose(0, 1) if is_transposed(layer) else weight
    return moved.movedim((0, 1), (-2, -1))


def _inputs_back(layer: nn.Module, moved: Tensor) -> Tensor:
    weight = moved.movedim((-2, -1), (0, 1))
    return (weight.transpose(0, 1) if is_transposed(layer) else weight).contiguous()
