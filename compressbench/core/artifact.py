"""Checks, saves and loads artifacts; loading replays the edits and verifies the tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressbench.core import digests
from compressbench.core.edits import (
    apply_edit_,
    codebook_bits,
    masked_layers,
    unique_state,
    weight_grids,
    weight_tensor,
    zero_point,
)
from compressbench.core.errors import CheckFailedError
from compressbench.core.grid import Grid, expand, step_limits
from compressbench.core.types import Artifact

TENSORS = "model.safetensors"
EARLY = "early.safetensors"
DESCRIPTION = "artifact.json"
GRID_TOLERANCE = 1e-3  # in steps of the grid


def check(artifact: Artifact, start: nn.Module | None = None) -> None:
    """Raise CheckFailedError unless the results of all stages are intact.

    All tensors must be finite, except that buffers may hold the infinities that they have in
    `start`, the model before the stage, such as those of an attention mask. Masked weights must be
    exactly zero, and quantized weights on their grid or in their codebook.
    """
    model = artifact.model
    constants = {} if start is None else dict(start.named_buffers())
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not _is_intact(tensor, constants.get(name)):
            raise CheckFailedError(f"{name} holds NaN or infinity")
    for name, layer in masked_layers(model).items():
        if bool(weight_tensor(layer)[~layer.get_buffer("weight_mask")].any()):
            raise CheckFailedError(f"{name}: a pruned weight is no longer zero")
    for name, grid in weight_grids(artifact.edits).items():
        _check_grid(name, model.get_submodule(name), grid)
    for name, bits in codebook_bits(artifact.edits).items():
        layer = model.get_submodule(name)
        book = layer.get_buffer("weight_codebook")
        if len(book) != 1 << bits or not bool(torch.isin(weight_tensor(layer), book).all()):
            raise CheckFailedError(f"{name}: weights left their codebook of {1 << bits} values")


def _is_intact(tensor: Tensor, before: Tensor | None) -> bool:
    """Whether all values are finite, or infinite where they were infinite `before`."""
    fine = torch.isfinite(tensor)
    if before is not None and before.shape == tensor.shape:
        fine |= torch.isinf(before).to(tensor.device) & (tensor == before.to(tensor.device))
    return bool(fine.all())


def _check_grid(name: str, layer: nn.Module, grid: Grid) -> None:
    weight = weight_tensor(layer).detach().double()
    steps = weight / expand(layer.get_buffer("weight_scale").double(), weight)
    low, high = step_limits(grid, zero_point(layer))
    if low.ndim:
        low, high = expand(low, weight), expand(high, weight)
    off = (steps - steps.round()).abs().max().item()
    if off > GRID_TOLERANCE or bool(((steps < low - 0.5) | (steps > high + 0.5)).any()):
        raise CheckFailedError(f"{name}: weights left their {grid.bits}-bit grid")


def save(artifact: Artifact, folder: Path) -> str:
    """Write safetensors and JSON into the existing `folder`; return the digest."""
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
    """Load what `save` wrote; `build` instantiates the model from its config.

    Raises CheckFailedError if the tensors do not fit the model or do not match their digest.
    """
    description = json.loads((folder / DESCRIPTION).read_text())
    model = build(description["model"])
    for edit in description["edits"]:
        apply_edit_(model, edit)
    state = load_file(folder / TENSORS)
    missing, unexpected = model.load_state_dict(state, strict=False)
    absent = set(missing) - (set(model.state_dict()) - set(unique_state(model)))
    if absent or unexpected:
        raise CheckFailedError(f"{folder}: missing or extra tensors: {[*absent, *unexpected][:4]}")
    artifact = Artifact(
        model.eval(),
        description["model"],
        tuple(description["edits"]),
        frozenset(description["properties"]),
        key,
        load_file(folder / EARLY) if (folder / EARLY).exists() else {},
    )
    if digest(artifact) != description["digest"]:
        raise CheckFailedError(f"{folder}: the tensors do not match their stored digest")
    return artifact


def digest(artifact: Artifact) -> str:
    """SHA-256 of the edits and all tensors, in order of name."""
    edits = json.dumps(list(artifact.edits), sort_keys=True)
    return digests.digest(
        [edits, *digests.named(dict(sorted(unique_state(artifact.model).items())))]
    )
