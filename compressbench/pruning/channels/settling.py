"""Finds the coupled channels of a model, and tries their removal before any of them is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from compressbench.core.errors import CheckFailedError
from compressbench.core.types import DataSpec
from compressbench.pruning.channels.coupling import Coupling, GroupPart, couple, without
from compressbench.pruning.channels.removal import atoms_of, failing, remove_channels
from compressbench.pruning.channels.shadows import Place
from compressbench.pruning.channels.tracing import REFUSALS

EXAMPLES = 4  # samples on which a pruned model is verified
ROUNDS = 6  # of other ways to split channels over axes
_planned: WeakKeyDictionary[nn.Module, Coupling] = WeakKeyDictionary()


def example_inputs(spec: DataSpec) -> Tensor:
    """A few random samples, the same in every process."""
    return spec.noise(EXAMPLES, torch.Generator().manual_seed(0))


def planned_coupling(model: nn.Module, spec: DataSpec) -> Coupling:
    """The `settled_coupling` of a copy of `model`, found once for each model of a plan."""
    if model not in _planned:
        _planned[model] = settled_coupling(deepcopy(model).cpu().eval(), example_inputs(spec))
    return _planned[model]


def settled_coupling(model: nn.Module, example: Tensor) -> Coupling:
    """The coupled channels of a model whose removal works in a trial.

    In a trial every second atom of each part is removed. Where a reshape splits channels over
    several axes, and none of them can go along the likeliest one, the others are tried. Groups
    that fail in the end are in `failed`, with the reason. Raises CheckFailedError if the model
    does not run.
    """
    choices: dict[Place, int] = {}
    try:
        coupling = _tried(model, example, choices)
        for _ in range(ROUNDS):
            stuck = {p: choices.get(p, 0) + 1 for p in _stuck(coupling)}
            turned = {p: taken for p, taken in stuck.items() if taken < coupling.places[p][0]}
            if not turned:
                break
            choices |= turned
            coupling = _tried(model, example, choices)
        in_vain = [place for place in _stuck(coupling) if choices.pop(place, 0)]
        return _tried(model, example, choices) if in_vain else coupling
    except REFUSALS as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckFailedError(f"the channels of this model cannot be followed: {text}") from error


def _tried(model: nn.Module, example: Tensor, choices: Mapping[Place, int]) -> Coupling:
    coupling = couple(model, example, choices)
    return without(coupling, _failing(model, coupling, example))


def _stuck(coupling: Coupling) -> list[Place]:
    """The reshapes that split channels of which none can be removed."""
    atoms = {atom for part in coupling.parts for atom in part.atoms}
    return [place for place, (_, labels) in coupling.places.items() if not labels & atoms]


def _failing(model: nn.Module, coupling: Coupling, example: Tensor) -> dict[str, str]:
    """The groups whose removal fails, with the reason; one trial if all of them work."""

    def attempt(atoms: Sequence[int]) -> str:
        try:
            remove_channels(model, coupling, atoms, example)
        except CheckFailedError as error:
            return str(error)
        return ""

    cuts = {root: half_of(parts) for root, parts in coupling.groups().items()}
    return failing(cuts, attempt) if attempt(atoms_of(cuts)) else {}


def half_of(parts: Sequence[GroupPart]) -> list[int]:
    """Every second atom of each part; none of a part with one."""
    return [atom for part in parts for atom in sorted(part.atoms)[1::2]]
