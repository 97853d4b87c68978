"""Folds BatchNorm into the preceding layer, so that the weights of the file are quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressbench.core.calls import Call, trace
from compressbench.core.edits import apply_edit_
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.grid import Grid
from compressbench.core.layers import per_output
from compressbench.core.types import Edit
from compressbench.quantization.grids.scheme import FUNCTIONS, LAYERS
from compressbench.quantization.grids.weight_uses import weight_uses

_TOLERANCE = 1e-3  # relative to the largest output, far above float32 rounding errors


def fold_batchnorm_(model: nn.Module, example: Tensor) -> Edit | None:
    """Fold every BatchNorm that is the only reader of a layer's output into that layer.

    With factor = gamma / sqrt(variance + eps) per output channel, the weight is multiplied by
    factor and the bias becomes beta + factor * (bias - mean), computed in float64. Layers without
    a bias get one, and the BatchNorm is replaced by nn.Identity. This applies to convolutions and
    linear layers that are called once and whose weight has no other use. A BatchNorm is kept if
    the model reads its attributes, or if it uses batch statistics.

    `model` must be in eval mode, on the device of `example` (a batch of two or more). Returns the
    edit {"kind": "fold", "pairs": [[layer, norm], ...]} in forward order, or None if nothing was
    folded. Raises CheckFailedError if the outputs change. Jacob et al. 2017 (arXiv:1712.05877,
    section 3.2).
    """
    norms_of = own_norms(model, example).items()
    pairs = [[layer, norm] for layer, norm in norms_of if _replaceable(model, norm, example)]
    if not pairs:
        return None
    edit: Edit = {"kind": "fold", "pairs": pairs}
    with unchanged_outputs(model, example, "folding BatchNorm"):
        norms = [model.get_submodule(norm) for _, norm in pairs]
        apply_edit_(model, edit)
        for (layer, _), norm in zip(pairs, norms, strict=True):
            assert isinstance(norm, _BatchNorm)
            _fold_(model.get_submodule(layer), norm)
    return edit


def own_norms(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Map each layer to the BatchNorm that can be folded into it, in forward order."""
    calls, last, places = single_calls(model, example)
    norm_calls = Counter(c.layer for c in calls if c.function == "batch_norm")
    norms = {}
    for name, position in places.items():
        norm = norm_after(calls, position)
        per_channel = calls[position].output.ndim == model.get_parameter(f"{name}.weight").ndim
        if norm is None or position == last or not per_channel or norm_calls[norm] != 1:
            continue
        module = model.get_submodule(norm)
        if isinstance(module, _BatchNorm) and _has_statistics(module):
            norms[name] = norm
    return norms


def norm_after(calls: list[Call], position: int) -> str | None:
    """The BatchNorm module that is the only reader of a call's output, or None."""
    consumers = calls[position].consumers
    if len(consumers) != 1 or calls[consumers[0]].function != "batch_norm":
        return None
    return calls[consumers[0]].layer


def single_calls(model: nn.Module, example: Tensor) -> tuple[list[Call], int, dict[str, int]]:
    """The calls of a forward pass, the position of the model's output, and those of layers.

    Positions are given, in forward order, for layers that may be rescaled or shifted separately:
    called once, with a weight and bias that nothing else uses. A layer without a bias must be of
    torch's own class, since a subclass might ignore an added bias.
    """
    calls, last = trace(model, example)
    uses = weight_uses(model, example)
    names = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    counts = Counter(call.layer for call in calls if call.function in FUNCTIONS)

    def alone(parameter: Tensor) -> bool:
        used = uses.get(id(parameter), set())
        return names[id(parameter)] == 1 and bool(used) and used <= FUNCTIONS

    places = {}
    for position, call in enumerate(calls):
        if call.function not in FUNCTIONS or not call.layer or counts[call.layer] != 1:
            continue
        layer = model.get_submodule(call.layer)
        parameters = dict(layer.named_parameters(recurse=False))
        stock = type(layer) in LAYERS or (isinstance(layer, LAYERS) and "bias" in parameters)
        if stock and "weight" in parameters and all(alone(p) for p in parameters.values()):
            places[call.layer] = position
    return calls, last, places


def check_scales_survive(
    model: nn.Module, grids: Mapping[str, Grid], example: Tensor
) -> tuple[str, ...]:
    """Check the effect of export, which folds BatchNorm into the scales of quantized weights.

    Raises UserError for scales that must stay powers of two. Returns a warning for grids with one
    scale per tensor, which become one per output channel in the file.
    """
    norms = own_norms(model, example)
    for name, grid in grids.items():
        if grid.power_of_two and name in norms:
            raise UserError(
                f"power_of_two: export multiplies the scales of {name} by BatchNorm "
                f"{norms[name]}; set fold_batchnorm=true"
            )
    spread = [name for name, grid in grids.items() if grid.granularity == "tensor"]
    spread = [name for name in spread if name in norms]
    if not spread:
        return ()
    return (
        f"granularity=tensor: export folds BatchNorm into {len(spread)} layers, which then get a "
        "scale per output channel in the file; fold_batchnorm=true keeps one per tensor",
    )


@contextmanager
def unchanged_outputs(model: nn.Module, example: Tensor, what: str) -> Iterator[None]:
    """Raise CheckFailedError if the block changes the model's outputs on random inputs."""
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    inputs = noise.to(example) if example.is_floating_point() else example  # ids are bounded
    with torch.no_grad():
        before = model(inputs)
        yield
        after = model(inputs)
    change = (after - before).abs().max().item() / max(before.abs().max().item(), 1e-30)
    if not change <= _TOLERANCE:
        raise CheckFailedError(f"{what} changed the model's outputs by {change:.1e} of the largest")


def _has_statistics(norm: _BatchNorm) -> bool:
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def _replaceable(model: nn.Module, name: str, example: Tensor) -> bool:
    """Whether the model runs, and calls it once, with an identity in place of the norm."""
    norm, identity = model.get_submodule(name), nn.Identity()
    calls: list[str] = []
    identity.register_forward_hook(lambda *_: calls.append(name))
    model.set_submodule(name, identity)
    try:
        with torch.no_grad():
            model(example)
    except AttributeError:  # reads, say, norm.weight
        return False
    finally:
        model.set_submodule(name, norm)
    return len(calls) == 1


def _fold_(layer: nn.Module, norm: _BatchNorm) -> None:
    factor, shift = _affine(norm)
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    with torch.no_grad():
        weight.copy_(weight.double() * per_output(factor, weight))
        bias.copy_(factor * bias.double() + shift)


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as factor * x + shift, float64 [C]."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    factor = 1.0 / torch.sqrt(variance.double() + norm.eps)
    if norm.affine:
        factor = norm.weight.detach().double() * factor
    shift = -factor * mean.double()
    return factor, shift + norm.bias.detach().double() if norm.affine else shift
