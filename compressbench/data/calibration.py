"""Training images for forward passes: calibration and BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from compressbench.core.distributed import rank, world_size
from compressbench.core.errors import UserError
from compressbench.core.types import Context
from compressbench.data.batches import batches


def training_images(context: Context, images: int, batch_size: int) -> Iterator[Tensor]:
    """Batches of training images, prepared but not augmented, on the runtime's device.

    `images` is the total over all ranks; `context.seed` chooses which. Raises UserError if there
    are fewer images than ranks.
    """
    return (inputs for inputs, _ in training_batches(context, images, batch_size))


def training_batches(
    context: Context, images: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `training_images` and their labels, int64 [B]."""
    cap = context.runtime.max_batches
    ranks = world_size()
    if images < ranks:
        raise UserError(f"{images} training images cannot be shared by {ranks} processes")
    return batches(
        context.data,
        "train",
        batch_size,
        device=context.runtime.device,
        limit=images if cap is None else min(images, cap * batch_size * ranks),
        shuffle_seed=context.seed,
        rank=rank(),
        world_size=ranks,
    )
