"""Leaves activations in float where this machine computes the exported file faster so.

An integer kernel needs a quantized input and output, so what is chosen are sites of activations:
without the quantizer of a site, the layers around it run on float kernels, on the same integer
weights, decoded when the file is loaded. Squeeze-and-excite branches and depthwise convolutions,
for example, may gain less from integers than the conversions around them cost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from compressbench.core.distributed import assert_same_on_ranks
from compressbench.core.edits import activation_grid
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Artifact, Context, Coverage
from compressbench.quantization.grids.site_groups import SiteGroup, Sites
from compressbench.quantization.grids.site_values import site_quantizers

FILES = "float_where_slower"  # name of the table of the files that were tried
MOST_FILES = 24
LEAST_GAIN = 0.01  # of the time, in two measurements


@dataclass(frozen=True)
class Chosen:
    """The fastest of the files tried. `gains` maps a layer that it computes in float to the time
    after over that before it was left in float, `rows` describe the files.
    """

    artifact: Artifact
    gains: dict[str, float]
    rows: Sequence[dict[str, Any]]


@dataclass
class _Search:
    """A climb from group to group: each is left in float, or quantized again if it is, and stays
    so where the file is smaller than `most_bytes` and faster twice.
    """

    full: Artifact
    context: Context
    most_bytes: float
    left: frozenset[int] = frozenset()
    time: float = 1.0  # over that of the fully quantized file
    gains: dict[int, float] = field(default_factory=dict)  # site -> of the group it came with
    rows: list[dict[str, Any]] = field(default_factory=list)
    tried: set[frozenset[int]] = field(default_factory=lambda: {frozenset()})

    def run(self, groups: Sequence[SiteGroup]) -> None:
        assert self.context.timed_against is not None
        time_of = self.context.timed_against(self.full)
        for group in groups:
            back = group.sites <= self.left
            left = self.left - group.sites if back else self.left | group.sites
            if left in self.tried or len(self.rows) == MOST_FILES:
                continue
            self.tried.add(left)
            self.context.progress(
                len(self.rows), MOST_FILES, f"timing files partly in float, best {self.time:.2f}"
            )
            artifact = without_sites(self.full, left)
            time, size = time_of(artifact), None
            if self._is_faster(time):
                time = max(time, time_of(artifact))  # a gain that does not repeat is none
                size = _bytes(artifact, self.context)
            kept = self._is_faster(time) and size is not None and size <= self.most_bytes
            self.rows.append(
                {"sites": group.name, "as": "integers" if back else "float", "latency": time,
                 "onnx_bytes": size, "kept": kept}
            )  # fmt: skip
            if kept:
                self._keep(left, time)

    def _is_faster(self, time: float) -> bool:
        return time <= self.time * (1 - LEAST_GAIN)

    def _keep(self, left: frozenset[int], time: float) -> None:
        fresh = dict.fromkeys(left - self.left, time / self.time)
        self.gains = {site: gain for site, gain in self.gains.items() if site in left} | fresh
        self.left, self.time = left, time


def fastest(full: Artifact, context: Context, max_growth: float) -> Chosen:
    """Try up to `MOST_FILES` files in which some activations of `full` stay in float.

    Raises CheckFailedError where files cannot be timed.

    Args:
        full: Artifact with static activation quantizers.
        context: Times files, in interleaved pairs with that of `full`, and weighs them.
        max_growth: Share by which the file may be larger than that of `full`.
    """
    edit = activation_grid(full.edits)
    if edit is None or context.timed_against is None:
        raise CheckFailedError("float_where_slower needs an exporter, but none is available here")
    sites = Sites(full.model, edit["sites"], context.data.spec.blank(2))
    search = _Search(full, context, (1 + max_growth) * _bytes(full, context))
    search.run(sites.groups())
    assert_same_on_ranks(str(sorted(search.left)), "which activations stay in float")
    layers = sites.layers_in_float(search.left)
    gains = {layer: search.gains[site] for layer, site in layers.items()}
    return Chosen(without_sites(full, search.left), gains, search.rows)


def _bytes(artifact: Artifact, context: Context) -> int:
    if context.export_bytes is None:
        raise CheckFailedError("float_where_slower needs an exporter, but none is available here")
    return context.export_bytes(artifact)


def without_sites(full: Artifact, left: Collection[int]) -> Artifact:
    """A copy of `full` without the activation quantizers of some sites, given by number."""
    model = deepcopy(full.model)
    edits = list(full.edits)
    place = next(n for n, edit in enumerate(edits) if edit["kind"] == "activation_grid")
    sites = edits[place]["sites"]
    kept = [site for number, site in enumerate(sites) if number not in left]
    edits[place] = {**edits[place], "sites": kept, "in_float": len(sites) - len(kept)}
    site_quantizers(model).drop_(left)
    return replace(full, model=model, edits=tuple(edits))


def with_gains(rows: Sequence[Coverage], chosen: Chosen) -> tuple[Coverage, ...]:
    """Coverage that says which layers are computed in float, and what that gained."""
    return tuple(
        replace(row, detail=f"{row.detail}; float: faster here ({chosen.gains[row.layer]:.2f})")
        if row.layer in chosen.gains
        else row
        for row in rows
    )
