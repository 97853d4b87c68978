"""What each layer and activation of a quantized model costs: each is left in float on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.core.activation_sites import site_name
from compressbench.core.edits import activation_grid, weight_bits
from compressbench.core.journal import Journal
from compressbench.core.parametrizations import with_plain_weights
from compressbench.core.types import Artifact, DataSpec, Edit
from compressbench.quantization.grids.site_values import site_quantizers
from compressbench.quantization.preparation.prepare import prepare_
from compressbench.quantization.quantize import Quantize

WEIGHTS, ACTIVATION = "weights", "activation"
WORST = 5  # parts that are left out at most
_SHARE = 0.1  # of the loss that quantization adds, for a part to be worth leaving out


@dataclass(frozen=True)
class Part:
    """What can stay in float: the weights of a layer, or an activation, by its `site_name`."""

    kind: str
    name: str
    bits: int
    suspicion: float  # noise over signal, to begin with what costs most


@dataclass(frozen=True)
class Quality:
    """The metric and the mean loss on some images."""

    metric: float
    loss: float
    higher: bool = True  # is better, of the metric

    @property
    def good(self) -> float:
        """The metric, so that higher is better."""
        return self.metric if self.higher else -self.metric


@dataclass(frozen=True)
class Cost:
    """The quality of the quantized model with one part in float."""

    part: Part
    quality: Quality


Floats = Mapping[str, Mapping[str, Tensor]]  # layer -> name of a parameter -> value in float


def float_parameters(
    stage: Quantize, start: Artifact, artifact: Artifact, spec: DataSpec
) -> Floats:
    """What `stage` rounded to make `artifact` from `start`: the weights and biases of layers."""
    model = deepcopy(with_plain_weights(start).model).cpu().eval()
    grids, _ = stage.scheme().grids(model, spec)
    prepare_(model, grids, spec.blank(2), stage.fold_batchnorm, stage.equalize)
    return {
        name: {key: value.detach().clone() for key, value in layer.named_parameters()}
        for name in weight_bits(artifact.edits)
        for layer in [model.get_submodule(name)]
    }


def parts_of(artifact: Artifact, floats: Floats, losses: Sequence[Mapping[str, Any]]) -> list[Part]:
    """All parts, those first that lose most; `losses` are rows of `grids.site_losses`."""
    bits = weight_bits(artifact.edits)
    found = [
        Part(
            WEIGHTS, name, bits[name], _noise(artifact.model.get_submodule(name), values["weight"])
        )
        for name, values in floats.items()
    ]
    edit = activation_grid(artifact.edits)
    if edit is not None and not edit.get("dynamic", False):
        lost = {row["site"]: float(row["lost"]) for row in losses}
        names = dict.fromkeys(site_name(site) for site in edit["sites"])
        found += [Part(ACTIVATION, name, edit["bits"], lost.get(name, 0.0)) for name in names]
    return sorted(found, key=lambda part: -part.suspicion)


def _noise(layer: nn.Module, exact: Tensor) -> float:
    error = (layer.get_parameter("weight").detach() - exact).square().sum()
    return float(error / exact.square().sum().clamp(min=1e-30))


@contextmanager
def left_out(artifact: Artifact, floats: Floats, parts: Sequence[Part]) -> Iterator[None]:
    """Compute `parts` of the artifact's model in float within the block."""
    model = artifact.model
    numbers = _sites(activation_grid(artifact.edits) or {"sites": []}, parts)
    with torch.no_grad():
        parameters = {
            (part.name, key): model.get_submodule(part.name).get_parameter(key)
            for part in parts
            if part.kind == WEIGHTS
            for key in floats[part.name]
        }
        before = {place: parameter.clone() for place, parameter in parameters.items()}
        sites = site_quantizers(model) if numbers else nn.ModuleList()
        grids = {number: sites[number] for number in numbers}
        try:
            for (layer, key), parameter in parameters.items():
                parameter.copy_(floats[layer][key])
            for number in numbers:
                sites[number] = nn.Identity()
            yield
        finally:
            for place, parameter in parameters.items():
                parameter.copy_(before[place])
            for number, grid in grids.items():
                sites[number] = grid


def _sites(edit: Edit, parts: Sequence[Part]) -> list[int]:
    """The numbers of the activations among `parts`; a dynamic one goes with its layer."""
    names = {part.name for part in parts if part.kind == ACTIVATION}
    layers = {part.name for part in parts if part.kind == WEIGHTS and edit.get("dynamic", False)}
    return [
        number
        for number, site in enumerate(edit["sites"])
        if site_name(site) in names or site["layer"] in layers
    ]


def costs(
    artifact: Artifact,
    floats: Floats,
    parts: Sequence[Part],
    measure: Callable[[nn.Module], Quality],
    seconds: float,
    progress: Callable[[int, int, str], None],
    journal: Journal,
) -> list[Cost]:
    """Measure one part after the other until `seconds` are over; the largest gain first.

    `journal` keeps what was measured, for this artifact and `measure` only.
    """
    end = time.monotonic() + seconds
    measured: list[Cost] = []
    before = journal.before(len(parts))

    def quality(part: Part) -> list[Any]:
        with left_out(artifact, floats, [part]):
            found = measure(artifact.model)
        return [found.metric, found.loss, found.higher]

    for number, part in enumerate(parts):
        if measured and time.monotonic() > end:
            break
        progress(number, len(parts), f"{part.kind} {part.name}{before}")
        figures = journal.once(f"{part.kind} {part.name}", partial(quality, part))
        measured.append(Cost(part, Quality(*figures)))
    return sorted(measured, key=lambda cost: (cost.quality.loss, -cost.quality.good))


def worst(measured: Sequence[Cost], quantized: Quality, exact: Quality) -> list[Part]:
    """The parts of sorted `measured` that each gain at least a tenth of what quantization adds to
    the loss; if it adds nothing, those that each gain at least half of what the metric lost.
    """
    gap, lost = quantized.loss - exact.loss, exact.good - quantized.good
    if gap > 0:
        gains = [c for c in measured if quantized.loss - c.quality.loss >= _SHARE * gap]
    elif lost > 0:
        gains = [c for c in measured if c.quality.good - quantized.good >= lost / 2]
        gains.sort(key=lambda cost: -cost.quality.good)
    else:
        gains = []
    return [cost.part for cost in gains[:WORST]]
