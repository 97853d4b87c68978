"""Rounds layers in order, each on inputs from the layers already rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.layer_inputs import WorkingCopies, layer_moments
from compressbench.core.digests import named
from compressbench.core.grid import Grid, GridWeight, on_cpu
from compressbench.core.journal import Journal
from compressbench.core.types import Context

Rounding = Callable[[Moments, Grid, Journal], GridWeight]  # the journal is that of the layer


def rounded_in_order(
    models: WorkingCopies,
    grids: Mapping[str, Grid],
    rounding: Rounding,
    context: Context,
    images: int,
    journal: Journal,
    drift: bool = True,
) -> dict[str, GridWeight]:
    """Round the weight of each layer by `rounding`, in the order of `grids`.

    The moments are over `images` training images; `models.changed` takes each result before the
    next layer is rounded. For `drift` see `layer_moments`; `journal` is that of `begun`.
    """
    rounded: dict[str, GridWeight] = {}
    before = journal.before(len(grids))

    def result(name: str, grid: Grid) -> dict[str, GridWeight]:
        inner = replace(context, journal=journal.within(name))
        moments = layer_moments(name, models, inner, images, drift)
        return {name: rounding(moments, grid, inner.journal)}

    for number, (name, grid) in enumerate(grids.items()):
        context.progress(number, len(grids), f"rounding {name}{before}")
        rounded |= finished(journal, name, partial(result, name, grid))
        with torch.no_grad():
            models.changed.get_parameter(f"{name}.weight").copy_(rounded[name].weight)
    context.progress(len(grids), len(grids), "rounding")
    return rounded


def begun(method: object, model: nn.Module, grids: Mapping[str, Grid], context: Context) -> Journal:
    """The journal of a rounding of `model` to `grids`, whose units are layers and blocks."""
    options = repr([method, sorted(grids.items()), context.batchnorm])
    return context.journal.within("rounding", options, *named(model.state_dict()))


def finished(
    journal: Journal,
    unit: str,
    compute: Callable[[], Mapping[str, GridWeight]],
    generator: torch.Generator | None = None,
) -> dict[str, GridWeight]:
    """The rounded weights of some layers, on the CPU: computed, or as they were before a kill."""

    def values() -> dict[str, list[Tensor | None]]:
        results = {name: on_cpu(result) for name, result in compute().items()}
        return {n: [r.scale, r.steps, r.zero_point] for n, r in results.items()}

    kept = journal.once(unit, values, generator)
    return {name: GridWeight(*parts) for name, parts in kept.items()}  # type: ignore[arg-type]
