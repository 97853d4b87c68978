"""Re-estimates BatchNorm statistics after weights have changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressbench.core.distributed import sum_over_ranks
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Context
from compressbench.data.calibration import training_images


@dataclass
class _Cumulative:
    """Forward pre-hook that makes the running statistics a mean over all values seen.

    `seen` counts values per channel; every call of a layer counts, also within one pass.
    """

    seen: float = 0.0

    def __call__(self, layer: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        if self.seen == 0.0:
            layer.reset_running_stats()
        values = args[0].numel() / layer.num_features
        self.seen += values
        layer.momentum = values / self.seen


def reestimate_batchnorm_(
    model: nn.Module, context: Context, images: int, batch_size: int = 256
) -> int:
    """Re-estimate mean and variance of every BatchNorm layer on training images.

    running_mean and running_var become the means of the batches' means and unbiased variances,
    weighted by the number of values per channel in each batch. All modules except BatchNorm stay
    in eval mode. Re-estimation follows Li et al. 2016 (arXiv:1603.04779); Nagel et al. 2019
    (arXiv:1906.04721) measure the shift that quantization causes.

    Args:
        model: changed in place; moved back to the CPU at the end.
        context: its seed chooses the images, which are not augmented.
        images: number of training images, summed over all ranks.
        batch_size: images per batch and rank; batches of one image have no variance and are
            skipped.

    Returns the number of layers re-estimated, 0 for a model without BatchNorm. Raises
    CheckFailedError if every batch was skipped.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and _tracks(m)]
    if not layers:
        return 0
    meters = [_Cumulative() for _ in layers]
    handles = [
        layer.register_forward_pre_hook(meter) for layer, meter in zip(layers, meters, strict=True)
    ]
    before = [(layer.training, layer.momentum) for layer in layers]
    model.eval().to(context.runtime.device)
    try:
        for layer in layers:
            layer.train()
        with torch.no_grad():
            for inputs in training_images(context, images, batch_size):
                if len(inputs) > 1:
                    model(inputs)
        return _merge_ranks_(layers, meters)
    finally:
        for handle in handles:
            handle.remove()
        for layer, (training, momentum) in zip(layers, before, strict=True):
            layer.train(training)
            layer.momentum = momentum
        model.cpu()


def _tracks(layer: _BatchNorm) -> bool:
    return layer.running_mean is not None and layer.running_var is not None


def _merge_ranks_(layers: list[_BatchNorm], meters: list[_Cumulative]) -> int:
    """Average the statistics over ranks, weighted by values seen; count the layers reached."""
    device = layers[0].state_dict()["running_mean"].device
    seen = torch.tensor([meter.seen for meter in meters], dtype=torch.float64, device=device)
    totals = sum_over_ranks(seen)
    if not bool(totals.any()):
        raise CheckFailedError("BatchNorm statistics: no batch of two or more training images")
    for layer, local, total in zip(layers, seen, totals, strict=True):
        if total == 0.0:  # not part of the forward pass: keep its statistics
            continue
        for statistic in (layer.running_mean, layer.running_var):
            if statistic is not None:
                weighted = sum_over_ranks(statistic.double() * (local / total))
                statistic.copy_(weighted)
    return int((totals > 0).sum())
