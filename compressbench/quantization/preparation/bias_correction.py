"""Bias correction: compensates the mean output shift of quantized layers in their biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.core.digests import named
from compressbench.core.distributed import sum_over_ranks
from compressbench.core.edits import add_bias_
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Context, Edit
from compressbench.data.calibration import training_images
from compressbench.quantization.preparation.folding import norm_after, single_calls

Change = Callable[[str, Tensor], Tensor | None]


def correct_bias_(
    model: nn.Module,
    reference: nn.Module,
    layers: Sequence[str],
    context: Context,
    images: int,
    batch_size: int = 64,
) -> Edit | None:
    """Add E[float pre-activation] - E[quantized pre-activation], per output channel, to biases.

    Both models run once on each batch, and each layer's shift is applied before later layers see
    its output. The bias gets the mean of the shifts over the batches: exact for a single batch,
    approximate for several, and computed in one pass.

    Layers are left out if a BatchNorm follows whose statistics will (`context.batchnorm`), since
    they absorb the shift, if they are called more than once, and if they share parameters. Nagel
    et al. 2019 (arXiv:1906.04721, section 4.2 and appendix D).

    Args:
        model: The model with quantized weights, in eval mode on the CPU; modified in place.
        reference: The same model before quantization, in eval mode on the CPU.
        layers: The quantized layers.
        context: Supplies the images.
        images: Number of training images, of all ranks together.
        batch_size: Images per batch.

    Returns:
        The edit {"kind": "bias", "layers": [...]} of the layers that had no bias, None if all had.

    Raises:
        CheckFailedError: A shift is not finite.
    """
    calls, _, places = single_calls(model, context.data.spec.blank(2))
    measured = [n for n in places if n in set(layers) and _has_channels(model, n, calls[places[n]])]
    kept = context.batchnorm == "keep"
    shifted = [n for n in measured if kept or norm_after(calls, places[n]) is None]
    if not shifted:
        return None
    shifts = _shifts(model, reference, measured, context, images, batch_size)
    bare = [name for name in shifted if model.get_submodule(name).bias is None]
    with torch.no_grad():
        for name in shifted:
            if not bool(torch.isfinite(shifts[name]).all()):
                raise CheckFailedError(f"bias correction of {name}: the shift is not finite")
            add_bias_(model.get_submodule(name))
            model.get_parameter(f"{name}.bias").add_(shifts[name])
    return {"kind": "bias", "layers": bare} if bare else None


def _has_channels(model: nn.Module, name: str, call: Any) -> bool:
    """Whether the output has a channel axis: not for convolutions without a batch axis."""
    layer = model.get_submodule(name)
    return isinstance(layer, nn.Linear) or call.output.ndim == layer.get_parameter("weight").ndim


def _shifts(
    model: nn.Module,
    reference: nn.Module,
    layers: Sequence[str],
    context: Context,
    images: int,
    batch_size: int,
) -> dict[str, Tensor]:
    """Map each layer to the shift to add to its bias, float64 [O]: the mean over all batches."""
    sizes = [len(model.get_parameter(f"{name}.weight")) for name in layers]
    total = torch.zeros(sum(sizes) + 1, dtype=torch.float64)
    asked = [repr([images, batch_size, layers]), *named(model.state_dict())]
    journal = context.journal.within("bias", *asked, *named(reference.state_dict()))
    for each in (model, reference):
        each.eval().to(context.runtime.device)
    try:
        with torch.no_grad():
            batches = training_images(context, images, batch_size)
            for inputs in journal.over("batches", batches, {"total": total}):
                shifts = _align(model, _means(reference, layers, inputs), inputs)
                parts = [shifts[name].double().cpu() for name in layers]
                total += len(inputs) * torch.cat([*parts, torch.ones(1, dtype=torch.float64)])
        total = sum_over_ranks(total.to(context.runtime.device)).cpu()
    finally:
        for each in (model, reference):
            each.cpu()
    means = torch.split(total[:-1] / total[-1], sizes)
    return dict(zip(layers, means, strict=True))


def _means(model: nn.Module, layers: Iterable[str], inputs: Tensor) -> dict[str, Tensor]:
    """Map each layer to the mean of its outputs per channel."""
    means: dict[str, Tensor] = {}

    def note(name: str, output: Tensor) -> None:
        means[name] = _channel_means(model.get_submodule(name), output)

    _run(model, layers, inputs, note)
    return means


def _align(model: nn.Module, targets: dict[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
    """Map each layer to the shift of its outputs to the mean in `targets`, applied in order."""
    shifts: dict[str, Tensor] = {}

    def shift(name: str, output: Tensor) -> Tensor:
        layer = model.get_submodule(name)
        shifts[name] = targets[name] - _channel_means(layer, output)
        after = () if isinstance(layer, nn.Linear) else (1,) * (output.ndim - 2)
        return output + shifts[name].reshape(-1, *after)

    _run(model, targets, inputs, shift)
    return shifts


def _run(model: nn.Module, layers: Iterable[str], inputs: Tensor, change: Change) -> None:
    """Run `model`; `change(name, output)` is called for `layers` and may replace the output."""
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: change(name, output)
        )
        for name in layers
    ]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()


def _channel_means(layer: nn.Module, output: Tensor) -> Tensor:
    axis = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
    return output.mean([a for a in range(output.ndim) if a != axis])
