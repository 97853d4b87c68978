"""Edits: structural changes of a model that can be replayed on a fresh instance of it.

Kinds of edits:
- `resize`: `tensors` {parameter or buffer name: new shape}, `attributes` {module: {name: value}},
  `removed` {layer: {"out": [...], "in": [...]}} (channel indices before this edit, informative)
- `mask`: `layers` [names] with a `weight_mask` (bool, shape of the weight; False: pruned)
- `weight_grid`: `layers` {name: options of its `Grid`}; the layer has `weight_scale` (and, unless
  symmetric, `weight_zero_point`), and every weight is its scale times a step of the grid
- `codebook`: `layers` {name: bits}; the layer has `weight_codebook`, 2**bits ascending float32
  values, and every weight is one of them
- `fold`: `pairs` [[layer, BatchNorm], ...]; the layer has a bias, the BatchNorm is an nn.Identity
- `bias`: `layers` [names] with a bias that the original architecture lacks
- `remove_parametrizations`: `layers` {module: names of its parametrized tensors}, which become
  plain parameters (core/parametrizations.py)
- `activation_grid`: `sites`, `bits`, `symmetric`, `power_of_two`, `calibration`, or `sites`, `bits`
  and `dynamic` (core/activation_quantizers.py). A site is a call: the `index`-th of `function` that
  the module `layer` makes itself, in the call of that module at `path` (core/call_stack.py).
  `in_float` counts the sites that were left out to be faster
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from compressbench.core import activation_quantizers, parametrizations
from compressbench.core.errors import CheckFailedError
from compressbench.core.grid import Grid, expand
from compressbench.core.types import Edit


def apply_edit_(model: nn.Module, edit: Edit) -> None:  # noqa: C901 - one case a kind
    """Apply the structure of one edit to `model`; values are loaded afterwards."""
    match edit["kind"]:
        case "resize":
            _resize_(model, edit)
        case "mask":
            for name in edit["layers"]:
                set_mask_(model.get_submodule(name))
        case "weight_grid":
            for name, options in edit["layers"].items():
                _set_grid_(model.get_submodule(name), Grid(**options))
        case "codebook":
            for name, bits in edit["layers"].items():
                set_codebook_(model.get_submodule(name), torch.zeros(1 << bits))
        case "fold":
            _drop_norms_(model, edit)
        case "bias":
            for name in edit["layers"]:
                add_bias_(model.get_submodule(name))
        case parametrizations.KIND:
            parametrizations.remove_(model, edit["layers"])
        case "activation_grid":
            activation_quantizers.attach_(model, edit)
        case kind:
            raise CheckFailedError(f"unknown kind of edit {kind!r}: made by a newer version?")


def _set_grid_(layer: nn.Module, grid: Grid) -> None:
    shape = grid.scale_shape(weight_tensor(layer))
    zero_point = None if grid.symmetric else torch.zeros(shape, dtype=torch.uint8)
    set_scale_(layer, torch.ones(shape), zero_point)


def _drop_norms_(model: nn.Module, edit: Edit) -> None:
    for name, norm in edit["pairs"]:
        add_bias_(model.get_submodule(name))
        model.set_submodule(norm, nn.Identity())


def _resize_(model: nn.Module, edit: Edit) -> None:
    for name, shape in edit["tensors"].items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        old = getattr(owner, leaf)
        new = torch.zeros(shape, dtype=old.dtype)
        if isinstance(old, nn.Parameter):
            setattr(owner, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(owner, leaf, new)
    for path, attributes in edit["attributes"].items():
        for attribute, value in attributes.items():
            exact = tuple(value) if isinstance(value, list) else value
            setattr(model.get_submodule(path), attribute, exact)


def set_mask_(layer: nn.Module, mask: Tensor | None = None) -> None:
    """Register `mask` (bool, True: kept; default: all True) on a layer; zero the pruned weights."""
    weight = weight_tensor(layer)
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    layer.register_buffer("weight_mask", kept)
    apply_mask_(layer)


def apply_mask_(layer: nn.Module) -> None:
    """Set the pruned weights of a masked layer to exactly zero."""
    with torch.no_grad():
        weight_tensor(layer).masked_fill_(~layer.get_buffer("weight_mask"), 0.0)


def add_bias_(layer: nn.Module) -> None:
    """Add a zero bias [output channels] to a layer that has no bias."""
    if getattr(layer, "bias", None) is None:
        weight = weight_tensor(layer)
        zeros = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        layer.bias = nn.Parameter(zeros)


def set_scale_(layer: nn.Module, scale: Tensor, zero_point: Tensor | None) -> None:
    """Register the scale of a layer's grid, and its zero point if it is asymmetric."""
    layer.register_buffer("weight_scale", scale)
    if zero_point is not None:
        layer.register_buffer("weight_zero_point", zero_point)


def set_codebook_(layer: nn.Module, values: Tensor) -> None:
    """Register the codebook of a layer: the values of its weights, float32 [2**bits]."""
    layer.register_buffer("weight_codebook", values)


def masked_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if hasattr(m, "weight_mask")}


def weight_grids(edits: Iterable[Edit]) -> dict[str, Grid]:
    """Layer name -> grid, for layers whose weights are on a grid."""
    return {
        name: Grid(**options)
        for edit in edits
        if edit["kind"] == "weight_grid"
        for name, options in edit["layers"].items()
    }


def codebook_bits(edits: Iterable[Edit]) -> dict[str, int]:
    """Layer name -> bits per weight, for layers with a codebook."""
    return {
        name: bits
        for edit in edits
        if edit["kind"] == "codebook"
        for name, bits in edit["layers"].items()
    }


def weight_bits(edits: Sequence[Edit]) -> dict[str, int]:
    """Layer name -> bits per weight, for layers with a grid or a codebook."""
    grids = {name: grid.bits for name, grid in weight_grids(edits).items()}
    return grids | codebook_bits(edits)


def activation_grid(edits: Iterable[Edit]) -> Edit | None:
    return next((e for e in edits if e["kind"] == "activation_grid"), None)


def integer_weight(layer: nn.Module) -> Tensor:
    """The weight of a quantized layer in steps of its grid: int16, shape of the weight."""
    weight = weight_tensor(layer)
    return torch.round(weight / expand(layer.get_buffer("weight_scale"), weight)).to(torch.int16)


def zero_point(layer: nn.Module) -> Tensor | None:
    """The zero point of a layer's grid, in the shape of the scale; None if symmetric."""
    return layer.get_buffer("weight_zero_point") if hasattr(layer, "weight_zero_point") else None


def weight_tensor(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise CheckFailedError(f"{type(layer).__name__} has no weight tensor")
    return weight


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with tied tensors under their first name only."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique


def parameters(model: nn.Module) -> int:
    """The number of parameters; scales, masks and codebooks are buffers and not counted."""
    return sum(math.prod(p.shape) for p in model.parameters())
