"""Gradients of the loss in the weights of single layers, batch by batch of training images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.types import Context
from compressbench.data.calibration import training_batches


def batch_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    context: Context,
    images: int,
    batch_size: int,
) -> Iterator[tuple[list[Tensor], int]]:
    """(gradients of the mean cross-entropy, one a layer, in its weight's shape; images) of each
    batch of this rank. The model is in eval mode: BatchNorm keeps its statistics.
    """
    probe = deepcopy(model).eval().to(context.runtime.device).requires_grad_(False)
    weights = [probe.get_parameter(f"{name}.weight").requires_grad_() for name in layers]
    for done, (inputs, targets) in enumerate(training_batches(context, images, batch_size)):
        context.progress(min(done * batch_size, images), images, "gradients of the weights")
        with torch.enable_grad():
            loss = F.cross_entropy(probe(inputs), targets)
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        yield list(gradients), len(inputs)
