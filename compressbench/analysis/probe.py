"""Copies of a model in which layers temporarily take other weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressbench.core.digests import digest, named
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Context
from compressbench.data.calibration import training_batches


def probe_of(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of `model` on `device` in eval mode, except that BatchNorm normalizes each batch.

    After a stage changed weights, BatchNorm statistics follow, which undoes a shift or scaling of
    whole channels; normalizing each batch keeps such changes out of the measurements.
    """
    probe = deepcopy(model).eval().to(device)
    for layer in probe.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
    return probe.requires_grad_(False)


def probe_batches(context: Context, images: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of this rank's training images, with their labels.

    Batches of a single image are dropped, since BatchNorm needs a variance. Raises
    CheckFailedError if no batch remains.
    """
    every = training_batches(context, images, batch_size)
    batches = [batch for batch in every if len(batch[0]) > 1]
    if not batches:
        raise CheckFailedError("sensitivity: no batch of two or more training images")
    return batches


def probe_images(context: Context, images: int, batch_size: int) -> list[Tensor]:
    """The images of `probe_batches`."""
    return [inputs for inputs, _ in probe_batches(context, images, batch_size)]


@contextmanager
def weight_replaced(probe: nn.Module, layer: str, weight: Tensor) -> Iterator[None]:
    """Give `layer` the values of `weight` inside the block, and restore its own afterwards."""
    parameter = probe.get_parameter(f"{layer}.weight")
    original = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(weight)
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(original)


def asked_of(probe: nn.Module, batches: Sequence[Tensor]) -> dict[str, str]:
    """Cache key, for `Context.recall`, of measurements of a probe on these images."""
    return {
        "probe": digest([str(probe), *named(probe.state_dict())]),
        "inputs": digest(named({str(number): x for number, x in enumerate(batches)})),
    }
