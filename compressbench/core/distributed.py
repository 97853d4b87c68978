"""Reductions over the ranks of a stage; with one process they are the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from compressbench.core.errors import CheckFailedError


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The element-wise sum of `values` over all ranks, a new tensor."""
    total = values.clone()
    if dist.is_initialized():
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def max_over_ranks(values: Tensor) -> Tensor:
    """The element-wise maximum of `values` over all ranks, a new tensor."""
    total = values.clone()
    if dist.is_initialized():
        dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return total


def assert_same_on_ranks(digest: str, what: str) -> None:
    """Raise CheckFailedError unless every rank passes the same hexadecimal `digest`."""
    if not dist.is_initialized():
        return
    everyone: list[str] = [""] * world_size()
    dist.all_gather_object(everyone, digest)
    if len(set(everyone)) > 1:
        raise CheckFailedError(
            f"{what} differs between ranks: {', '.join(d[:12] for d in everyone)}"
        )


def mean_over_ranks(values: Tensor) -> Tensor:
    """The element-wise mean of `values` over all ranks, a new tensor."""
    return sum_over_ranks(values) / torch.tensor(float(world_size()), device=values.device)


def kept_by_all_ranks(names: set[str]) -> set[str]:
    """Those of `names` that all ranks have."""
    if not dist.is_initialized():
        return names
    everyone: list[set[str]] = [set() for _ in range(world_size())]
    dist.all_gather_object(everyone, names)
    return set.intersection(*everyone)
