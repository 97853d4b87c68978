"""BatchNorm statistics after a change of the weights: shifted with it, measured anew, or kept."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressbench.core.batchnorm import (
    Args,
    BatchNormRule,
    Match,
    Pairs,
    batchnorm_layers,
    given_to,
)
from compressbench.core.digests import named
from compressbench.core.distributed import sum_over_ranks
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import Context
from compressbench.core.validation import check_integer
from compressbench.data.calibration import training_images


@dataclass(frozen=True, kw_only=True)
class BatchNormOptions:
    """Options of the stages that change weights without training.

    Args:
        batchnorm: "shift" moves the BatchNorm statistics as the stage moves the inputs of the
            layers (`shift_batchnorm_`), "measure" takes those of training images
            (`reestimate_batchnorm_`), "keep" leaves them as they are.
        batchnorm_images: Training images for the first two, at least 2.
    """

    batchnorm: BatchNormRule = "shift"
    batchnorm_images: int = 1024

    def check_batchnorm(self) -> None:
        if self.batchnorm not in get_args(BatchNormRule):
            raise UserError(f"batchnorm must be shift, measure or keep, got {self.batchnorm!r}")
        check_integer("batchnorm_images", self.batchnorm_images, 2)

    def batchnorm_passes(self, train_images: int) -> int:
        """Images that `update_batchnorm_` runs forward."""
        runs = {"shift": 2, "measure": 1, "keep": 0}[self.batchnorm]
        return runs * min(self.batchnorm_images, train_images)

    def update_batchnorm_(
        self,
        model: nn.Module,
        before: nn.Module,
        context: Context,
        kept: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Update the statistics of `model`, made from `before`; `kept` as in `shift_batchnorm_`."""
        if self.batchnorm == "shift":
            shift_batchnorm_(model, before, context, self.batchnorm_images, kept=kept)
        elif self.batchnorm == "measure":
            reestimate_batchnorm_(model, context, self.batchnorm_images)


def shift_batchnorm_(
    model: nn.Module,
    before: nn.Module,
    context: Context,
    images: int,
    batch_size: int = 256,
    kept: Mapping[str, Tensor] | None = None,
) -> int:
    """Move mean and variance of every BatchNorm layer as a stage has moved its inputs.

    The same training images pass through the model before and after the stage, and

        running_mean += mean_after - mean_before + (running_mean - mean_before) (s - 1)
        running_var = (running_var + eps) s^2 - eps,  s^2 = var_after / var_before

    so the normalized inputs keep mean and variance, channel by channel: exactly where the stage
    has scaled and shifted channels. Statistics of a fit, taken on augmented images and by moving
    averages, are kept where nothing changed, bit by bit. In the second pass, every layer
    normalizes by the shifted statistics, so that a layer's shift is the one that remains once
    earlier layers are corrected. The same correction of a layer's mean and variance, from
    statistics alone and for biases: Nagel et al. 2019 (arXiv:1906.04721).

    Args:
        model: The model after the stage; changed in place, moved back to the CPU at the end.
        before: The model before the stage, with the same BatchNorm layers.
        context: Its seed chooses the images, which are not augmented.
        images: Number of training images, summed over all ranks.
        batch_size: Images per batch and rank.
        kept: Channels of BatchNorm layers of `before` that `model` has as well; missing: all.

    Returns the number of layers shifted; layers that the forward pass never calls keep theirs.
    """
    layers = batchnorm_layers(model)
    if not layers:
        return 0
    device = context.runtime.device
    before = deepcopy(before).eval().to(device)
    model.eval().to(device)
    totals = {n: torch.zeros(2, 3, m.num_features, dtype=torch.float64, device=device)
              for n, m in layers.items()}  # fmt: skip

    def note(name: str, earlier: Tensor, later: Tensor) -> None:
        totals[name].add_(torch.stack([earlier, later]))

    options = repr([images, batch_size])
    asked = [*named(before.state_dict()), *named(model.state_dict()), *named(kept or {})]
    journal = context.journal.within("shift", options, *asked)
    pairs = Pairs(before, model, kept, note)
    try:
        with torch.no_grad():
            batches = training_images(context, images, batch_size)
            for inputs in journal.over("batches", batches, totals):
                before(inputs)
                model(inputs)
            return _shift_(layers, totals)
    finally:
        pairs.remove()
        model.cpu()


def _shift_(layers: Mapping[str, _BatchNorm], totals: Mapping[str, Tensor]) -> int:
    """Set the statistics of the layers from the totals of all ranks; count those reached."""
    reached = 0
    for name, layer in layers.items():
        earlier, later = sum_over_ranks(totals[name])
        if bool(later[0].any()):
            mean, variance = Match.of(layer, earlier, later).statistics(layer)
            layer.get_buffer("running_mean").copy_(mean)
            layer.get_buffer("running_var").copy_(variance)
            reached += 1
    return reached


@dataclass
class _Cumulative:
    """Forward pre-hook that makes the running statistics a mean over all values seen.

    `seen` counts values per channel; every call of a layer counts, also within one pass.
    """

    seen: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def __call__(self, layer: _BatchNorm, args: Args, kwargs: dict[str, Any]) -> None:
        if not self.seen:
            layer.reset_running_stats()
        values = given_to(args, kwargs).numel() / layer.num_features
        self.seen += values
        layer.momentum = values / float(self.seen)


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
    layers = list(batchnorm_layers(model).values())
    if not layers:
        return 0
    meters = [_Cumulative() for _ in layers]
    handles = [
        layer.register_forward_pre_hook(meter, with_kwargs=True)
        for layer, meter in zip(layers, meters, strict=True)
    ]
    before = [(layer.training, layer.momentum) for layer in layers]
    options = repr([images, batch_size])
    journal = context.journal.within("statistics", options, *named(model.state_dict()))
    model.eval().to(context.runtime.device)
    try:
        for layer in layers:
            layer.train()
        with torch.no_grad():
            batches = training_images(context, images, batch_size)
            for inputs in journal.over("batches", batches, _state(layers, meters)):
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


def _state(layers: list[_BatchNorm], meters: list[_Cumulative]) -> dict[str, Tensor]:
    """The tensors that a pass changes, in place."""
    seen = {f"{number} seen": meter.seen for number, meter in enumerate(meters)}
    buffers = {f"{number} {name}": buffer for number, layer in enumerate(layers)
               for name, buffer in layer.named_buffers(recurse=False)}  # fmt: skip
    return seen | buffers


def _merge_ranks_(layers: list[_BatchNorm], meters: list[_Cumulative]) -> int:
    """Average the statistics over ranks, weighted by values seen; count the layers reached."""
    device = layers[0].state_dict()["running_mean"].device
    seen = torch.stack([meter.seen for meter in meters]).to(device)
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
