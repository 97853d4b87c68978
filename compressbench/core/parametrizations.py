"""Replaces parametrized weights by plain ones.

torch computes a parametrized weight anew at every use: weight_norm, spectral_norm, orthogonal, or
a parametrization of the user's own. A model is trained with its parametrizations; the first stage
that is done with training evaluates them, which is exact, so that later stages see plain weights.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from compressbench.core.types import Artifact, Edit

KIND = "remove_parametrizations"


def parametrized(model: nn.Module) -> dict[str, list[str]]:
    """Name of a module -> names of its parametrized tensors."""
    return {n: list(_lists(m)) for n, m in model.named_modules() if is_parametrized(m)}


def with_plain_weights(artifact: Artifact) -> Artifact:
    """The artifact without parametrizations, and with the edit that removes them."""
    if not parametrized(artifact.model):
        return artifact
    model = deepcopy(artifact.model)
    edits = fold_(model)
    return replace(artifact, model=model, edits=(*artifact.edits, *edits))


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy without parametrizations; the model itself if it has none."""
    if not parametrized(model):
        return model
    copy = deepcopy(model)
    fold_(copy)
    return copy


def fold_(model: nn.Module) -> list[Edit]:
    """Replace every parametrized tensor by its value in eval mode; return the edit that repeats
    this, none for a model without parametrizations.
    """
    layers = parametrized(model)
    remove_(model, layers)
    return [{"kind": KIND, "layers": layers}] if layers else []


def remove_(model: nn.Module, layers: dict[str, list[str]]) -> None:
    """Replace the tensors of `layers` (module -> parametrized tensors) by their values.

    Not with `torch.nn.utils.parametrize.remove_parametrizations`, which changes the module's class;
    copies of a module share that class.
    """
    training = model.training
    model.eval()
    for name in layers:
        _remove_all_(model.get_submodule(name))
    model.train(training)


def parametrization_names(layer: nn.Module) -> str:
    """What computes the tensors of a layer, such as "weight_norm"; "" for a plain layer."""
    kinds = [type(part).__name__ for parts in _lists(layer).values() for part in parts]
    return ", ".join(dict.fromkeys(_NAMES.get(kind, kind) for kind in kinds))


def is_own(parameter: str) -> bool:
    """Whether a parameter, by its name in a module, is the module's own and not a child's."""
    return "." not in parameter or parameter.startswith(f"{_LISTS}.")


_LISTS = "parametrizations"  # the child of a module that holds what computes its tensors
_NAMES = {
    "_WeightNorm": "weight_norm",
    "_SpectralNorm": "spectral_norm",
    "_Orthogonal": "orthogonal",
}


def _lists(module: nn.Module) -> dict[str, ParametrizationList]:
    if not is_parametrized(module):
        return {}
    found = module.get_submodule(_LISTS).named_children()
    return {name: parts for name, parts in found if isinstance(parts, ParametrizationList)}


def _remove_all_(module: nn.Module) -> None:
    values = {name: _evaluated(module, name) for name in _lists(module)}
    delattr(module, _LISTS)
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        if isinstance(value, nn.Parameter):
            module.register_parameter(name, value)
        else:
            module.register_buffer(name, value)


def _evaluated(module: nn.Module, name: str) -> Tensor:
    value: Tensor = getattr(module, name).detach().clone()
    parts = _lists(module)[name]
    originals = [p for n, p in parts.named_parameters(recurse=False) if n.startswith("original")]
    if not originals:
        return value
    return nn.Parameter(value, requires_grad=any(p.requires_grad for p in originals))
