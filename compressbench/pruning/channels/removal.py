"""Removes channels from a model, and verifies that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.core.batchnorm import batchnorm_layers
from compressbench.core.edits import apply_edit_, masked_layers
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Edit
from compressbench.pruning.channels.coupling import Coupling, Removed, is_depthwise
from compressbench.pruning.channels.lively import lively
from compressbench.pruning.channels.narrowing import narrow_
from compressbench.pruning.channels.rules_layers import whole_groups
from compressbench.pruning.channels.tracing import REFUSALS, all_tensors, plainly

TOLERANCE = 1e-3  # relative to the largest output; reordered float32 sums differ far less
VARIATION = 1e-6  # least difference between outputs of different samples, relative to the largest

Cuts = Mapping[str, Sequence[int]]  # root of a group -> its atoms to remove


def atoms_of(cuts: Cuts) -> list[int]:
    """All atoms that cuts remove, sorted."""
    return sorted(atom for atoms in cuts.values() for atom in atoms)


def failing(cuts: Cuts, attempt: Callable[[Sequence[int]], str]) -> dict[str, str]:
    """The groups of `cuts` whose removal fails, with the reason.

    `attempt` removes atoms, and returns why that fails, or "". Groups that fail only beside others
    are found by adding one after the other.
    """
    failed = {root: reason for root, atoms in cuts.items() if (reason := attempt(atoms))}
    rest = {root: atoms for root, atoms in cuts.items() if root not in failed}
    if not rest or not attempt(atoms_of(rest)):
        return failed
    kept: list[int] = []
    for root, atoms in rest.items():
        reason = attempt([*kept, *atoms])
        if reason:
            failed[root] = f"beside other channels, {reason}"
        else:
            kept += atoms
    return failed


def kept_channels(model: nn.Module, removed: Removed) -> dict[str, Tensor]:
    """Map each BatchNorm layer of `model` that loses channels to those it keeps, int64 [C]."""
    kept = {}
    for name, layer in batchnorm_layers(model).items():
        gone = removed.get(name, {}).get("out", [])
        if gone:
            stays = torch.ones(layer.num_features, dtype=torch.bool)
            stays[gone] = False
            kept[name] = stays.nonzero().flatten()
    return kept


def remove_channels(
    model: nn.Module, coupling: Coupling, atoms: Collection[int], example: Tensor
) -> nn.Module:
    """A copy of `model` without the channels of `atoms`, verified to compute the same otherwise.

    The proof is made on a copy with random statistics and scales (`lively`), so that it does not
    pass for a lack of differences: without the channels, its outputs on `example` [B, ...] must
    equal those when every layer ignores the channels. The smaller model must also run in training
    mode where `model` does. Raises CheckFailedError, with the reason, if one of them fails.
    """
    if not atoms:
        return deepcopy(model)
    reasons = []
    for with_sizes in (False, True):
        try:
            return _removed(model, coupling, atoms, example, with_sizes)
        except CheckFailedError as error:
            reasons.append(error)
    raise reasons[0]


def _removed(
    model: nn.Module, coupling: Coupling, atoms: Collection[int], example: Tensor, sizes: bool
) -> nn.Module:
    wide = lively(model, example)
    small, proof = deepcopy(model), deepcopy(wide)
    try:
        for each in (small, proof):
            narrow_(each, coupling, atoms, with_sizes=sizes)
            _slice_masks_(each)
        outputs = run(proof, example)
        run(small, example)
    except REFUSALS as error:
        raise CheckFailedError(
            f"the model does not run without its channels: {_told(error)}"
        ) from error
    try:
        _compare(outputs, run(ignore_channels(wide, coupling.removed(atoms)), example))
    except CheckFailedError:
        if not _same(run(wide, example), run(wide, example, seed=1)):
            raise CheckFailedError("the model draws random numbers for its channels") from None
        raise
    _check_training(model, small, example)
    return small


def _compare(outputs: list[Tensor], expected: list[Tensor]) -> None:
    for found, wanted in zip(outputs, expected, strict=True):
        if not wanted.is_floating_point():
            continue
        largest = float(wanted.abs().max())
        if found.shape != wanted.shape or not bool(
            ((found - wanted).abs() <= TOLERANCE * largest).all()
        ):
            raise CheckFailedError("what the rest computes changes without its channels")
    if not any(_varies(wanted) for wanted in expected):
        raise CheckFailedError(
            "its removal cannot be verified: the outputs are the same for all samples"
        )


def _varies(output: Tensor) -> bool:
    """Whether samples differ in their outputs [B, ...]."""
    if output.ndim == 0 or not output.is_floating_point() or len(output) < 2:
        return True
    spread = float((output - output[:1]).abs().max())
    return spread > VARIATION * float(output.abs().max())


def _check_training(model: nn.Module, small: nn.Module, example: Tensor) -> None:
    """Raise CheckFailedError unless `small` runs in training mode, if `model` does."""
    try:
        run(deepcopy(model), example, training=True)
    except REFUSALS:
        return
    try:
        run(deepcopy(small), example, training=True)
    except REFUSALS as error:
        raise CheckFailedError(
            f"the model does not run without its channels in training: {_told(error)}"
        ) from error


def _told(error: BaseException) -> str:
    """The first line of an error, behind the place in the model's code that raised it."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    own = {Path(torch.__file__).parent, Path(__file__).parent}
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    places = [
        f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}: "
        for frame in frames
        if not own & set(Path(frame.f_code.co_filename).parents)
    ]
    return (places[-1] if places else "") + line


def run(model: nn.Module, example: Tensor, training: bool = False, seed: int = 0) -> list[Tensor]:
    """The model's outputs, with a fixed seed for models that use random numbers."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), plainly():
        torch.default_generator.manual_seed(seed)
        return all_tensors(model.train(training)(example))


def ignore_channels(model: nn.Module, removed: Removed) -> nn.Module:
    """A copy of `model` whose layers have zero weights for the removed input channels."""
    copy = deepcopy(model)
    with torch.no_grad():
        for name, weight in ignoring_weights(model, removed).items():
            copy.get_parameter(f"{name}.weight").copy_(weight)
    return copy


def ignoring_weights(model: nn.Module, removed: Removed) -> dict[str, Tensor]:
    """Weights with zeros for the removed input channels, of all layers that have such inputs.

    Convolutions that lose whole groups are left out: what they compute of them is ignored behind.
    """
    weights = {}
    for name, sides in removed.items():
        layer = model.get_submodule(name)
        if "in" in sides and isinstance(layer, (_ConvNd, nn.Linear)) and not _loses_groups(layer):
            weights[name] = layer.weight.detach().clone()
            for channel in sides["in"]:
                _input_weights(layer, weights[name], channel).zero_()
    return weights


def _loses_groups(layer: _ConvNd | nn.Linear) -> bool:
    return is_depthwise(layer) or (isinstance(layer, _ConvNd) and whole_groups(layer))


def _input_weights(layer: _ConvNd | nn.Linear, weight: Tensor, channel: int) -> Tensor:
    """View of the part of `weight` that is multiplied with one input channel."""
    if isinstance(layer, _ConvNd) and layer.transposed:
        return weight[channel]
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    outputs, inputs = weight.shape[:2]
    rows, group = outputs // groups, channel // inputs
    return weight[group * rows : (group + 1) * rows, channel % inputs]


def _slice_masks_(model: nn.Module) -> None:
    """Resize masks of an earlier stage to their weights: zeros stay masked."""
    for layer in masked_layers(model).values():
        weight = layer.get_parameter("weight").detach()
        if layer.get_buffer("weight_mask").shape != weight.shape:
            layer.register_buffer("weight_mask", weight != 0)


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def resize_edit(before: nn.Module, after: nn.Module, removed: Removed) -> Edit:
    """The edit, in plain JSON, that gives `before` the shapes and attributes of `after`."""
    shapes = _shapes(before)
    tensors = {n: list(s) for n, s in _shapes(after).items() if s != shapes[n]}
    attributes = {}
    old = dict(before.named_modules())
    for name, module in after.named_modules():
        changed = {
            attribute: list(value) if isinstance(value, tuple) else value
            for attribute, value in vars(module).items()
            if _is_size(value) and value != vars(old[name]).get(attribute, value)
        }
        if changed:
            attributes[name] = changed
    return {"kind": "resize", "tensors": tensors, "attributes": attributes, "removed": removed}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def _is_size(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_size(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)


def check_replay(before: nn.Module, after: nn.Module, edit: Edit, example: Tensor) -> None:
    """Raise CheckFailedError unless `edit` and the tensors of `after` turn `before` into it."""
    replayed = deepcopy(before)
    try:
        apply_edit_(replayed, json.loads(json.dumps(edit)))
        replayed.load_state_dict(after.state_dict())
        same = _same(run(replayed, example), run(after, example))
    except (AttributeError, RuntimeError) as error:
        raise CheckFailedError(f"channel removal cannot be replayed: {error}") from error
    if not same:
        raise CheckFailedError("channel removal, replayed, gives a model with different outputs")
