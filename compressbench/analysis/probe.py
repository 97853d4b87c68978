"""A copy of a model whose layers take other weights for a while."""

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
    """A copy of `model` on `device`, in eval mode but for BatchNorm, which takes its statistics
    from each batch: a stage measures them again after rounding, and then a shift or a shrinkage
    of whole channels costs nothing.
    """
    probe = deepcopy(model).eval().to(device)
    for layer in probe.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
    return probe.requires_grad_(False)


def probe_batches(context: Context, images: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of this rank's training images with their labels; one without the two images that a
    variance takes is left out, CheckFailedError when none remains.
    """
    found = [batch for batch in training_batches(context, images, batch_size) if len(batch[0]) > 1]
    if not found:
        raise CheckFailedError("sensitivity: no batch of two or more training images")
    return found


def probe_images(context: Context, images: int, batch_size: int) -> list[Tensor]:
    """The images of `probe_batches`."""
    return [inputs for inputs, _ in probe_batches(context, images, batch_size)]


@contextmanager
def weight_replaced(probe: nn.Module, layer: str, weight: Tensor) -> Iterator[None]:
    """`layer` has `weight` inside the block, and its own again afterwards."""
    parameter = probe.get_parameter(f"{layer}.weight")
    own = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(weight)
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(own)


def asked_of(probe: nn.Module, batches: Sequence[Tensor]) -> dict[str, str]:
    """What figures of a probe on these images depend on, for `Context.recall`."""
    return {
        "probe": digest([str(probe), *named(probe.state_dict())]),
        "inputs": digest(named({str(number): x for number, x in enumerate(batches)})),
    }


def divergence(answers: Tensor, logits: Tensor) -> Tensor:
    """Sum over images of KL(p || q) in nats, p and q from `answers` [B, K] (log-probabilities of
    the float model) and `logits` [B, K].

    It is the cross-entropy against the float model's own answers less their entropy: never
    negative, zero where nothing changed, and without labels.
    """
    return nn.functional.kl_div(logits.log_softmax(1), answers, reduction="sum", log_target=True)
