"""Batches of a split, prepared as a whole on the target device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.types import Data, Split, SplitName

CPU = torch.device("cpu")
RESIDENT_BYTES = 2 * 2**30  # a split of up to this size is kept on the accelerator


@dataclass(frozen=True)
class Batches:
    """One pass over a split, with a length and repeatable; for the arguments see `batches`."""

    data: Data
    split: SplitName
    batch_size: int
    device: torch.device = CPU
    limit: int | None = None
    shuffle_seed: int | None = None
    augment: bool = False
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be an integer of at least 1, got {self.batch_size}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"the number of images must be at least 1, got {self.limit}")
        if self.augment and self.shuffle_seed is None:
            raise ValueError("augment needs shuffle_seed, which seeds the augmentation")

    def __len__(self) -> int:
        return batch_count(
            len(self.data.split(self.split)),
            self.batch_size,
            limit=self.limit,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        source = self.data.split(self.split)
        if len(self) == 0:
            raise UserError(
                f"a batch of {self.batch_size} on each of {self.world_size} processes needs more "
                f"than the {len(source)} images of the {self.split} split"
            )
        return self._yield(source)

    def _yield(self, source: Split) -> Iterator[tuple[Tensor, Tensor]]:
        order = image_order(
            len(source), self.limit, self.shuffle_seed, self.rank, self.world_size, self.drop_last
        )
        inputs, targets = _resident(source.inputs, self.device), source.targets.to(self.device)
        order = order.to(inputs.device)
        generator = torch.Generator().manual_seed(_rank_seed(self.shuffle_seed or 0, self.rank))
        for batch in range(len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            chosen = inputs[indices].to(self.device)
            if self.augment:
                chosen = self.data.augment(chosen, generator)
            yield self.data.prepare(chosen), targets[indices.to(targets.device)]


def batches(
    data: Data,
    split: SplitName,
    batch_size: int,
    *,
    device: torch.device = CPU,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    augment: bool = False,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (prepared inputs [B, ...], int64 targets [B]) on `device`.

    Rank r gets every `world_size`-th image, starting with the r-th; the shards are disjoint.

    Args:
        data: the dataset.
        split: name of the split.
        batch_size: images per batch and rank.
        device: device of the batches.
        limit: number of images to use, summed over ranks, after shuffling; None for all.
        shuffle_seed: permutes the split, equally on every device, and seeds the augmentation; None
            keeps the order.
        augment: apply training augmentation; needs `shuffle_seed`.
        rank: position of this process.
        world_size: number of processes.
        drop_last: drop images so that every rank gets the same number of full batches. Raises
            UserError if no batch is left.
    """
    return iter(
        Batches(
            data,
            split,
            batch_size,
            device=device,
            limit=limit,
            shuffle_seed=shuffle_seed,
            augment=augment,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
    )


def batch_count(
    images: int,
    batch_size: int,
    *,
    limit: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
) -> int:
    """The number of batches that `batches` yields on one rank for a split of `images`."""
    total = images if limit is None else min(limit, images)
    if drop_last:
        return total // world_size // batch_size
    return -(-len(range(rank, total, world_size)) // batch_size)


def image_order(
    images: int,
    limit: int | None,
    shuffle_seed: int | None,
    rank: int,
    world_size: int,
    drop_last: bool,
) -> Tensor:
    """The indices of the images of one rank, in order; int64 on the CPU."""
    if shuffle_seed is None:
        order = torch.arange(images)
    else:
        order = torch.randperm(images, generator=torch.Generator().manual_seed(shuffle_seed))
    order = order[:limit]
    if drop_last:
        order = order[: len(order) // world_size * world_size]
    return order[rank::world_size]


def _resident(inputs: Tensor, device: torch.device) -> Tensor:
    return inputs.to(device) if inputs.nbytes <= RESIDENT_BYTES else inputs


def _rank_seed(seed: int, rank: int) -> int:
    """A different seed for each rank; the constant spreads them over 63 bits."""
    return (seed + rank * 0x9E3779B97F4A7C15) % 2**63
