"""Mixed precision: chooses the bits of each layer under a budget of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compressbench.core.digests import named
from compressbench.core.errors import CheckFailedError, LimitError, UserError
from compressbench.core.grid import Grid, WeightQuantizer
from compressbench.core.journal import Journal
from compressbench.core.layers import weight_owners
from compressbench.core.protocols import Sensitivity
from compressbench.core.types import Artifact, Context
from compressbench.core.validation import check_integer, is_number
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.rounding.nearest import Nearest

TABLE = "allocation"  # name of the stage's table
_ROUNDS = 6  # attempts of solving, rounding, exporting and comparing with the budget
_INFEASIBLE = 2  # status code of scipy.optimize.milp
_COST_SCALE = 1e6  # scales the largest cost, as the solver stops at an absolute gap of 1e-6

Methods = tuple[WeightQuantizer, WeightQuantizer]
Finish = Callable[[Mapping[str, Grid], WeightQuantizer], Artifact]
Weigh = Callable[[Mapping[str, Grid], WeightQuantizer], tuple[int, Artifact | None]]


@dataclass(frozen=True)
class Allocated:
    """The model with mixed grids, the grid of each layer, and a table row for each layer."""

    artifact: Artifact
    grids: dict[str, Grid]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Allocation:
    """Minimize sum_l sensitivity(l, b_l) over the bits b_l, with an ONNX file within `budget`.

    The optimum is exact, by integer programming, as far as the costs of layers add up. Sizes of
    weights, scales and zero points are computed, the rest of the file is measured on exported
    files. If the file with the chosen bits exceeds the budget, bits are chosen again with less to
    spend. Raises LimitError, with the smallest possible size, if the budget is too low.

    Sensitivities are measured with rounding to nearest: with the stage's method if it is
    `Nearest`, otherwise on MSE ranges. Choosing bits by integer programming on a table of
    sensitivities follows Yao et al. 2021 (HAWQ-V3, arXiv:2011.10680, section 3.4).

    Args:
        sensitivity: Estimates the cost of each layer at each width.
        budget: Bytes as an integer, or a share in (0, 1) of the file at the largest width.
        widths: The bits to choose from, two or more in [2, 8]. 3 bits are stored as 4, and 5 to 7
            bits as 8.
    """

    sensitivity: Sensitivity
    budget: int | float = 0.75
    widths: Sequence[int] = (2, 4, 8)

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not is_number(self.budget):
            raise UserError(f"budget must be bytes or a share in (0, 1), got {self.budget!r}")
        if isinstance(self.budget, int):
            check_integer("budget in bytes", self.budget, 1, 10**15)
        elif not 0 < self.budget < 1:
            raise UserError(f"budget must be bytes or a share in (0, 1), got {self.budget!r}")
        if not isinstance(self.widths, (list, tuple)) or len(set(self.widths)) < 2:
            raise UserError(f"widths must be a list of two or more, got {self.widths!r}")
        for bits in self.widths:
            check_integer("widths", bits, 2, 8)
        if not callable(self.sensitivity):
            raise UserError(f"sensitivity must be a sensitivity, got {self.sensitivity!r}")

    def __call__(
        self,
        model: nn.Module,
        grids: Mapping[str, Grid],
        free: Sequence[str],
        method: WeightQuantizer,
        finish: Finish,
        context: Context,
    ) -> Allocated:
        """Choose the bits of the layers in `free`; all other layers keep their grids.

        `finish(grids, method)` builds the artifact from `model` (float, not modified). It is
        called with rounding to nearest before it is called with `method`, which may take long.
        """
        draft = method if isinstance(method, Nearest) else Nearest(Mse())
        owners = weight_owners(model, free)  # layers with one weight get the same bits
        names, widths = list(dict.fromkeys(owners.values())), sorted(set(self.widths))

        def mixed(bits: Sequence[int]) -> dict[str, Grid]:
            of = dict(zip(names, bits, strict=True))
            return {n: _at(g, of[owners[n]]) if n in owners else g for n, g in grids.items()}

        journal = context.journal.within("files", *named(model.state_dict()))
        weigh = partial(_weighed, finish, context, journal)

        def uniform_bytes(bits: int) -> int:
            return weigh(mixed([bits] * len(names)), draft)[0]

        widest, least = uniform_bytes(widths[-1]), uniform_bytes(widths[0])
        budget = self._budget_bytes(widest)
        if least > budget:
            at_least = f"at least {least:,} bytes, with {widths[0]} bits in every layer"
            text = f"allocation.budget={budget:,} bytes is too low: the ONNX file has {at_least}"
            raise LimitError(text, least / max(budget, 1) - 1)
        sizes = _sizes({n: _weight(model, n) for n in names}, grids, widths, widest - least)
        candidates = _candidates(model, {n: grids[n] for n in names}, widths, draft, context)
        costs = self.sensitivity(model, candidates, context)
        table = _cost_table(costs, names, widths)
        spend = budget - (widest - int(sizes[:, -1].sum()))
        for _ in range(_ROUNDS):
            picked = cheapest(table, sizes, spend) or [0] * len(names)
            chosen = mixed([widths[p] for p in picked])
            artifact, excess = _finished(chosen, (draft, method), weigh, budget)
            if excess <= 0:
                artifact = artifact or finish(chosen, method)  # weighed before a kill
                return Allocated(artifact, chosen, _rows(model, chosen, owners, costs))
            spent = int(sizes[np.arange(len(names)), picked].sum())
            spend = min(spend, spent) - excess  # below what these bits take, so that others follow
        raise CheckFailedError(
            f"the file is still {excess:,} bytes over its budget of {budget:,} after {_ROUNDS} "
            "attempts"
        )

    def _budget_bytes(self, widest: int) -> int:
        return self.budget if isinstance(self.budget, int) else math.floor(self.budget * widest)


def cheapest(costs: NDArray[Any], sizes: NDArray[Any], spend: float) -> list[int] | None:
    """Choose a column for each row of `costs` and `sizes`, both [L, W].

    Minimizes the sum of costs subject to a sum of sizes of at most `spend`; exact (branch and
    bound, HiGHS). Returns None if no choice is small enough.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import eye_array, kron

    layers, choices = costs.shape
    scaled = costs / (costs.max() or 1.0) * _COST_SCALE
    result = milp(
        scaled.ravel(),
        integrality=np.ones(costs.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(kron(eye_array(layers), np.ones((1, choices))).tocsr(), 1, 1),
            LinearConstraint(sizes.ravel()[None].astype(float), -np.inf, spend),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if result.status == _INFEASIBLE:
        return None
    if not result.success:
        raise CheckFailedError(f"integer programming of the widths failed: {result.message}")
    picked: list[int] = result.x.reshape(costs.shape).argmax(axis=1).tolist()
    return picked


def layer_bytes(weight: Tensor, grid: Grid, narrowest: int = 2) -> int:
    """Bytes of a quantized weight in an ONNX file: integers, float32 scales and zero points.

    `narrowest` is the width in bits of the narrowest integer type that the file may use.
    """
    stored = max(stored_bits(grid.bits), narrowest)
    scales = math.prod(grid.scale_shape(weight))
    zero_points = 0 if grid.symmetric else math.ceil(scales * stored / 8)
    return math.ceil(weight.numel() * stored / 8) + 4 * scales + zero_points


def stored_bits(bits: int) -> int:
    """The bits of the ONNX integer type that stores `bits`: 2, 4 or 8."""
    return next(width for width in (2, 4, 8) if bits <= width)


def _at(grid: Grid, bits: int) -> Grid:
    return replace(grid, bits=bits)


def _weight(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight").detach()


def _candidates(
    model: nn.Module,
    grids: Mapping[str, Grid],
    widths: Sequence[int],
    method: WeightQuantizer,
    context: Context,
) -> dict[str, dict[int, Tensor]]:
    """Map each layer and number of bits to the layer's weight on that grid."""
    rounded = {
        bits: method(model, {n: _at(grid, bits) for n, grid in grids.items()}, context)
        for bits in widths
    }
    return {n: {bits: rounded[bits][n].weight for bits in widths} for n in grids}


def _cost_table(
    costs: Mapping[str, Mapping[int, float]], names: Sequence[str], widths: Sequence[int]
) -> NDArray[np.float64]:
    """Costs [L, W]. Raises CheckFailedError for a sensitivity that is not finite or negative."""
    table = np.array([[costs[name][bits] for bits in widths] for name in names])
    for name, row in zip(names, table, strict=True):
        if not (np.isfinite(row) & (row >= 0)).all():
            raise CheckFailedError(
                f"sensitivity of {name} must be finite and not negative, got {row.tolist()}"
            )
    return table


def _sizes(
    weights: Mapping[str, Tensor], grids: Mapping[str, Grid], widths: Sequence[int], span: int
) -> NDArray[np.int64]:
    """Bytes [L, W] of each layer at each width.

    The narrowest integer type of the file is inferred: it is the one that best explains `span`,
    the measured difference in bytes between the largest and the smallest width in all layers.
    """
    tables = [
        np.array(
            [[layer_bytes(w, _at(grids[n], bits), narrowest) for bits in widths]
             for n, w in weights.items()]
        )
        for narrowest in (2, 4, 8)
    ]  # fmt: skip
    return min(tables, key=lambda sizes: abs(int((sizes[:, -1] - sizes[:, 0]).sum()) - span))


def _weighed(
    finish: Finish,
    context: Context,
    journal: Journal,
    grids: Mapping[str, Grid],
    method: WeightQuantizer,
) -> tuple[int, Artifact | None]:
    """The bytes of a finished file, and the artifact, unless the journal has the bytes alone."""
    made: list[Artifact] = []

    def weigh() -> int:
        if context.export_bytes is None:
            raise CheckFailedError("a budget of bytes needs an exporter")
        made.append(finish(grids, method))
        context.progress(0, 1, "measuring the file size")
        return context.export_bytes(made[0])

    return journal.once(repr([method, sorted(grids.items())]), weigh), next(iter(made), None)


def _finished(
    grids: Mapping[str, Grid], methods: Methods, weigh: Weigh, budget: int
) -> tuple[Artifact | None, int]:
    """The artifact as `_weighed` returns it, and by how many bytes its file exceeds the budget.

    The second method is used only if the file of the first, faster method fits.
    """
    draft, method = methods
    for rounding in (method,) if draft is method else methods:
        size, artifact = weigh(grids, rounding)
        if size > budget:
            break
    return artifact, size - budget


def _rows(
    model: nn.Module,
    grids: Mapping[str, Grid],
    owners: Mapping[str, str],
    costs: Mapping[str, Mapping[int, float]],
) -> tuple[dict[str, Any], ...]:
    """A table row for each layer; sensitivities are None if the bits were set by the user.

    `option` is the override that sets the same bits by hand, after +recipe.stages.NAME.
    """
    widths = sorted({bits for by_bits in costs.values() for bits in by_bits})
    return tuple(
        {
            "layer": name,
            "weights": _weight(model, name).numel(),
            "bits": grid.bits,
            "bytes": layer_bytes(_weight(model, name), grid),
            "chosen": name in owners,
            "option": f"widths.{name}={grid.bits}",
            **{
                f"sensitivity_{bits}": costs[owners[name]][bits] if name in owners else None
                for bits in widths
            },
        }
        for name, grid in grids.items()
    )
