"""Artifacts on disk and back: replay the edits, load the tensors, check what must have survived.

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
  and `dynamic` (quantizers/activations.py)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressbench.core import Artifact, CheckFailedError, Edit
from compressbench.quantizers import activations
from compressbench.quantizers.grid import Grid, expand, step_limits

TENSORS = "model.safetensors"
EARLY = "early.safetensors"
DESCRIPTION = "artifact.json"
GRID_TOLERANCE = 1e-3  # of one step of the grid


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
            activations.attach_(model, edit)
        case kind:
            raise CheckFailedError(f"unknown kind of edit {kind!r}: made by a newer version?")


def _set_grid_(layer: nn.Module, grid: Grid) -> None:
    shape = grid.scale_shape(_weight(layer))
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
    weight = _weight(layer)
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    layer.register_buffer("weight_mask", kept)
    apply_mask_(layer)


def apply_mask_(layer: nn.Module) -> None:
    """Zero what the layer's mask excludes, exactly."""
    with torch.no_grad():
        _weight(layer).masked_fill_(~_buffer(layer, "weight_mask"), 0.0)


def add_bias_(layer: nn.Module) -> None:
    """Give a layer a bias of zeros, one for each output channel, unless it has one."""
    if getattr(layer, "bias", None) is None:
        weight = _weight(layer)
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


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if hasattr(m, "weight_scale")}


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
    weight = _weight(layer)
    return torch.round(weight / expand(_buffer(layer, "weight_scale"), weight)).to(torch.int16)


def zero_point(layer: nn.Module) -> Tensor | None:
    """The zero point of an asymmetric grid, in the shape of the scale."""
    return _buffer(layer, "weight_zero_point") if hasattr(layer, "weight_zero_point") else None


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise CheckFailedError(f"{type(layer).__name__} has no weight tensor")
    return weight


def _buffer(layer: nn.Module, name: str) -> Tensor:
    return layer.get_buffer(name)


def check(artifact: Artifact) -> None:
    """Raise CheckFailedError unless every earlier stage's work is still there.

    Masked weights are exactly zero, quantized weights on their grid or in their codebook, tensors
    finite,
    and the properties are those that the edits establish.
    """
    model = artifact.model
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckFailedError(f"{name} holds NaN or infinity")
    for name, layer in masked_layers(model).items():
        if bool(_weight(layer)[~_buffer(layer, "weight_mask")].any()):
            raise CheckFailedError(f"{name}: a weight that was pruned is not zero any more")
    for name, grid in weight_grids(artifact.edits).items():
        _check_grid(name, model.get_submodule(name), grid)
    for name, bits in codebook_bits(artifact.edits).items():
        layer = model.get_submodule(name)
        book = _buffer(layer, "weight_codebook")
        if len(book) != 1 << bits or not bool(torch.isin(_weight(layer), book).all()):
            raise CheckFailedError(f"{name}: weights left their codebook of {1 << bits} values")


def _check_grid(name: str, layer: nn.Module, grid: Grid) -> None:
    weight = _weight(layer).detach().double()
    steps = weight / expand(_buffer(layer, "weight_scale").double(), weight)
    low, high = step_limits(grid, zero_point(layer))
    if low.ndim:
        low, high = expand(low, weight), expand(high, weight)
    off = (steps - steps.round()).abs().max().item()
    if off > GRID_TOLERANCE or bool(((steps < low - 0.5) | (steps > high + 0.5)).any()):
        raise CheckFailedError(f"{name}: weights left their {grid.bits}-bit grid")


def save(artifact: Artifact, folder: Path) -> str:
    """Write safetensors and JSON into `folder`, which exists; return the digest."""
    state = {k: v.detach().cpu().contiguous() for k, v in unique_state(artifact.model).items()}
    save_file(state, folder / TENSORS)
    if artifact.early:
        save_file({k: v.cpu().contiguous() for k, v in artifact.early.items()}, folder / EARLY)
    description = {
        "schema": 1,
        "model": dict(artifact.model_config),
        "edits": list(artifact.edits),
        "properties": sorted(artifact.properties),
        "digest": digest(artifact),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    return str(description["digest"])


def load(folder: Path, build: Callable[[Mapping[str, Any]], nn.Module], key: str) -> Artifact:
    """Read back what `save` wrote. `build` turns the model's config into the architecture."""
    description = json.loads((folder / DESCRIPTION).read_text())
    model = build(description["model"])
    for edit in description["edits"]:
        apply_edit_(model, edit)
    state = load_file(folder / TENSORS)
    missing, unexpected = model.load_state_dict(state, strict=False)
    absent = set(missing) - (set(model.state_dict()) - set(unique_state(model)))
    if absent or unexpected:
        raise CheckFailedError(f"{folder}: tensors that do not fit: {[*absent, *unexpected][:4]}")
    artifact = Artifact(
        model.eval(),
        description["model"],
        tuple(description["edits"]),
        frozenset(description["properties"]),
        key,
        load_file(folder / EARLY) if (folder / EARLY).exists() else {},
    )
    if digest(artifact) != description["digest"]:
        raise CheckFailedError(f"{folder}: the tensors are not those that were stored")
    return artifact


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """The state without second names of one tensor (tied weights)."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique


def digest(artifact: Artifact) -> str:
    """SHA-256 over the edits and all tensors, in name order."""
    sha = hashlib.sha256(json.dumps(list(artifact.edits), sort_keys=True).encode())
    for name, tensor in sorted(unique_state(artifact.model).items()):
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return sha.hexdigest()


def parameters(model: nn.Module) -> int:
    """Parameters of the model: scales and masks of ours are not counted."""
    return sum(math.prod(p.shape) for p in model.parameters())
