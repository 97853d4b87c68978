"""What compression does to a live model, as edits that can be replayed on a fresh one.

The kinds of edits:
- `resize`: `tensors` {parameter or buffer name: new shape}, `attributes` {module: {name: value}},
  `removed` {layer: {"out": [...], "in": [...]}} (channel indices before this edit; for the reader)
- `mask`: `layers` [names] whose `weight_mask` (bool, shape of the weight) holds zeros for good
- `weight_grid`: `layers` {name: options of its `Grid`}; the layer has `weight_scale` (and, unless
  symmetric, `weight_zero_point`), and every weight is its scale times a step of the grid
- `codebook`: `layers` {name: bits}; the layer has `weight_codebook`, 2**bits ascending float32
  values, and every weight is one of them
- `fold`: `pairs` [[layer, BatchNorm], ...]: the layer has a bias, the BatchNorm is an nn.Identity
- `bias`: `layers` [names] that have a bias which the architecture does not give them
- `activation_grid`: `sites`, `bits`, `symmetric`, `power_of_two`, `calibration`, or `sites`, `bits`
  and `dynamic` (core/activation_quantizers.py)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from compressbench.core import activation_quantizers
from compressbench.core.errors import CheckFailedError
from compressbench.core.grid import Grid, expand
from compressbench.core.types import Edit


def apply_edit_(model: nn.Module, edit: Edit) -> None:  # noqa: C901 - one case a kind
    """Give `model` the structure of one edit; the values come from the stored tensors."""
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
    """Hang `mask` (bool, True is kept; all kept by default) into a layer and zero the rest."""
    weight = weight_tensor(layer)
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    layer.register_buffer("weight_mask", kept)
    apply_mask_(layer)


def apply_mask_(layer: nn.Module) -> None:
    """Zero what the layer's mask excludes, exactly."""
    with torch.no_grad():
        weight_tensor(layer).masked_fill_(~layer.get_buffer("weight_mask"), 0.0)


def add_bias_(layer: nn.Module) -> None:
    """Give a layer a bias of zeros, one for each output channel, unless it has one."""
    if getattr(layer, "bias", None) is None:
        weight = weight_tensor(layer)
        zeros = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        layer.bias = nn.Parameter(zeros)


def set_scale_(layer: nn.Module, scale: Tensor, zero_point: Tensor | None) -> None:
    """Hang the scale of its grid into a layer, and the zero point of an asymmetric one."""
    layer.register_buffer("weight_scale", scale)
    if zero_point is not None:
        layer.register_buffer("weight_zero_point", zero_point)


def set_codebook_(layer: nn.Module, values: Tensor) -> None:
    """Hang the values that its weights may have, float32 [2**bits], into a layer."""
    layer.register_buffer("weight_codebook", values)


def masked_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if hasattr(m, "weight_mask")}


def weight_grids(edits: Iterable[Edit]) -> dict[str, Grid]:
    """Layer name -> grid, of the layers whose weights are on one."""
    return {
        name: Grid(**options)
        for edit in edits
        if edit["kind"] == "weight_grid"
        for name, options in edit["layers"].items()
    }


def codebook_bits(edits: Iterable[Edit]) -> dict[str, int]:
    """Layer name -> bits of a code, of the layers whose weights are in a codebook."""
    return {
        name: bits
        for edit in edits
        if edit["kind"] == "codebook"
        for name, bits in edit["layers"].items()
    }


def weight_bits(edits: Sequence[Edit]) -> dict[str, int]:
    """Layer name -> bits, of the layers whose weights are on a grid or in a codebook."""
    grids = {name: grid.bits for name, grid in weight_grids(edits).items()}
    return grids | codebook_bits(edits)


def activation_grid(edits: Iterable[Edit]) -> Edit | None:
    return next((e for e in edits if e["kind"] == "activation_grid"), None)


def integer_weight(layer: nn.Module) -> Tensor:
    """The steps of a quantized layer (0 is zero), int16, in the shape of its weight."""
    weight = weight_tensor(layer)
    return torch.round(weight / expand(layer.get_buffer("weight_scale"), weight)).to(torch.int16)


def zero_point(layer: nn.Module) -> Tensor | None:
    """The zero point of an asymmetric grid, in the shape of the scale."""
    return layer.get_buffer("weight_zero_point") if hasattr(layer, "weight_zero_point") else None


def weight_tensor(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise CheckFailedError(f"{type(layer).__name__} has no weight tensor")
    return weight


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """The state without second names of one tensor (tied weights)."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique


def parameters(model: nn.Module) -> int:
    """Parameters of the model: scales and masks of ours are not counted."""
    return sum(math.prod(p.shape) for p in model.parameters())
