"""BatchNorm statistics, measured again after weights have changed."""

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
    """A forward pre-hook: the running statistics become a mean over all values seen.

    `seen` counts values per channel; a layer called several times in a pass is seen as often.
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
    """Measure mean and variance of every BatchNorm layer on training images, not augmented.

    running_mean and running_var become the means of the batches' means and unbiased variances,
    weighted by the values per channel of each batch, over `images` images (all ranks together)
    that `context.seed` chooses. Everything but BatchNorm stays in eval mode. Returns the number of
    layers measured: 0 when the model has none. A batch of a single image has no variance and is
    left out; CheckFailedError when no batch remains.

    Nagel et al. 2019 (arXiv:1906.04721) measure what quantization shifts; Li et al. 2016
    (arXiv:1603.04779) estimate these statistics anew.
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
    """Average the statistics over the ranks, weighted by what each saw; count layers reached."""
    device = layers[0].state_dict()["running_mean"].device
    seen = torch.tensor([meter.seen for meter in meters], dtype=torch.float64, device=device)
    totals = sum_over_ranks(seen)
    if not bool(totals.any()):
        raise CheckFailedError("BatchNorm statistics: no batch of two or more training images")
    for layer, own, total in zip(layers, seen, totals, strict=True):
        if total == 0.0:  # not part of the forward pass: its statistics stay
            continue
        for statistic in (layer.running_mean, layer.running_var):
            if statistic is not None:
                weighted = sum_over_ranks(statistic.double() * (own / total))
                statistic.copy_(weighted)
    return int((totals > 0).sum())
