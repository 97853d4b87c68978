"""Finds the coupled channels of a model, and tries their removal before any of them is chosen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from compressbench.core.errors import CheckFailedError
from compressbench.pruning.channels.coupling import Coupling, GroupPart, couple, without
from compressbench.pruning.channels.removal import every_second, remove_channels
from compressbench.pruning.channels.shadows import Place
from compressbench.pruning.channels.tracing import REFUSALS

ROUNDS = 6  # of other ways to split channels over axes


def settled_coupling(model: nn.Module, example: Tensor) -> Coupling:
    """The coupled channels of a model whose removal works in a trial.

    In a trial every second atom of each part is removed. Where that fails, channels that a
    reshape splits over several axes go along another axis, one after the other; groups that fail
    in the end are in `failed`, with the reason. Raises CheckFailedError if the model does not run.
    """
    choices: dict[Place, int] = {}
    try:
        coupling = couple(model, example, choices)
    except REFUSALS as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckFailedError(f"the channels of this model cannot be followed: {text}") from error
    failed = _failing(model, coupling, example)
    for _ in range(ROUNDS):
        if not _turn_(choices, coupling, failed):
            break
        coupling = couple(model, example, choices)
        failed = _failing(model, coupling, example)
    return without(coupling, failed)


def _failing(model: nn.Module, coupling: Coupling, example: Tensor) -> dict[str, str]:
    """The groups whose removal fails, with the reason; one trial if all of them work."""
    groups = coupling.groups()
    if _trial(model, coupling, coupling.parts, example) is None:
        return {}
    reasons = {root: _trial(model, coupling, parts, example) for root, parts in groups.items()}
    return {root: reason for root, reason in reasons.items() if reason is not None}


def _trial(
    model: nn.Module, coupling: Coupling, parts: Sequence[GroupPart], example: Tensor
) -> str | None:
    atoms = [atom for part in parts for atom in every_second(part.atoms)]
    if not atoms:
        return None
    try:
        remove_channels(model, coupling, atoms, example)
    except CheckFailedError as error:
        return str(error)
    return None


def _turn_(choices: dict[Place, int], coupling: Coupling, failed: dict[str, str]) -> bool:
    """Take the next option of all reshapes that groups in `failed` pass; False if there is none."""
    labels = {a for part in coupling.parts if part.root in failed for a in part.atoms}
    turned = False
    for place, (count, passing) in coupling.places.items():
        taken = choices.get(place, 0)
        if labels & passing and taken + 1 < count:
            choices[place] = taken + 1
            turned = True
    return turned
