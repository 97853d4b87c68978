"""Mixed precision: bits for each layer, the best that fits a budget of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.grid import Grid, WeightQuantizer
from compressbench.core.layers import weight_owners
from compressbench.core.protocols import Sensitivity
from compressbench.core.types import Artifact, Context
from compressbench.core.validation import check_integer, is_number
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.rounding.nearest import Nearest

TABLE = "allocation"  # its name among the tables of a stage
_ROUNDS = 6  # of solving, rounding, exporting and weighing
_INFEASIBLE = 2  # a status of scipy.optimize.milp
_COST_SCALE = 1e6  # of the largest cost: the solver stops at a gap of 1e-6, whatever the unit

Finish = Callable[[Mapping[str, Grid], WeightQuantizer], Artifact]


@dataclass(frozen=True)
class Allocated:
    """The model with mixed grids, the grid of each layer, and one row a layer for the report."""

    artifact: Artifact
    grids: dict[str, Grid]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Allocation:
    """min over b of sum_l sensitivity(l, b_l) subject to bytes of the ONNX file <= `budget`.

    Each layer l gets one of `widths`, integers of bits in [2, 8]; 3 bits are stored as 4, and 5
    to 7 as 8. `budget` is in bytes, or a share in (0, 1) of the file at the widest width. The
    optimum is exact, by integer programming, for costs that add up over the layers and the bytes
    of weights, scales and zero points; what else a file holds is measured on exported files. The
    file with the chosen widths is exported and weighed, too, and they are chosen again with less
    to spend while it is over the budget. UserError names the least possible bytes, those of the
    narrowest width in every layer, where the budget is below them.

    Sensitivities are those of rounding to nearest: with the method of the stage if it is
    `Nearest`, on MSE ranges otherwise. Allocation under a budget by integer programming on a
    table of sensitivities: Yao et al. 2021 (HAWQ-V3, arXiv:2011.10680, section 3.4).
    """

    sensitivity: Sensitivity
    budget: int | float = 0.75
    widths: Sequence[int] = (2, 4, 8)

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not is_number(self.budget):
            raise UserError(f"budget must be bytes or a share in (0, 1), got {self.budget!r}")
        if self.budget < 1 if isinstance(self.budget, int) else not 0 < self.budget < 1:
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
        """Choose the bits of the layers in `free`; the others keep their grids.

        `finish(grids, method)` makes the artifact from `model` (float, not changed) and is called
        with rounding to nearest before it is with `method`, which may take long.
        """
        draft = method if isinstance(method, Nearest) else Nearest(Mse())
        owners = weight_owners(model, free)  # layers with one weight get the same bits
        names, widths = list(dict.fromkeys(owners.values())), sorted(set(self.widths))

        def mixed(bits: Sequence[int]) -> dict[str, Grid]:
            of = dict(zip(names, bits, strict=True))
            return {n: _at(g, of[owners[n]]) if n in owners else g for n, g in grids.items()}

        def uniform_bytes(bits: int) -> int:
            return _weigh(finish(mixed([bits] * len(names)), draft), context)

        widest, least = uniform_bytes(widths[-1]), uniform_bytes(widths[0])
        budget = self._budget_bytes(widest)
        if least > budget:
            raise UserError(
                f"allocation.budget={budget:,} bytes: the ONNX file has {least:,} at the least, "
                f"with {widths[0]} bits in every layer"
            )
        sizes = _sizes({n: _weight(model, n) for n in names}, grids, widths, widest - least)
        candidates = _candidates(model, {n: grids[n] for n in names}, widths, draft, context)
        costs = self.sensitivity(model, candidates, context)
        table = _cost_table(costs, names, widths)
        spend = budget - (widest - int(sizes[:, -1].sum()))
        for _ in range(_ROUNDS):
            picked = cheapest(table, sizes, spend) or [0] * len(names)
            chosen = mixed([widths[p] for p in picked])
            artifact, excess = _finished(chosen, (draft, method), finish, budget, context)
            if excess <= 0:
                return Allocated(artifact, chosen, _rows(model, chosen, owners, costs))
            spend -= excess
        raise CheckFailedError(
            f"the file is still {excess:,} bytes over its budget of {budget:,} after {_ROUNDS} "
            "choices of widths"
        )

    def _budget_bytes(self, widest: int) -> int:
        return self.budget if isinstance(self.budget, int) else math.floor(self.budget * widest)


def cheapest(costs: NDArray[Any], sizes: NDArray[Any], spend: float) -> list[int] | None:
    """The column of each row, of `costs` and `sizes` [L, W], with the least sum of costs whose
    sizes sum to at most `spend`; None where there is none. Exact (branch and bound, HiGHS).
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
        raise CheckFailedError(f"integer programming of the widths: {result.message}")
    picked: list[int] = result.x.reshape(costs.shape).argmax(axis=1).tolist()
    return picked


def layer_bytes(weight: Tensor, grid: Grid, narrowest: int = 2) -> int:
    """Bytes of a weight on its grid in an ONNX file: integers, scales float32, zero points.

    `narrowest` are the bits of the narrowest type that the runtime of the file knows.
    """
    stored = max(stored_bits(grid.bits), narrowest)
    scales = math.prod(grid.scale_shape(weight))
    zero_points = 0 if grid.symmetric else math.ceil(scales * stored / 8)
    return math.ceil(weight.numel() * stored / 8) + 4 * scales + zero_points


def stored_bits(bits: int) -> int:
    """The integer types of ONNX have 2, 4 and 8 bits."""
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
    """Layer -> bits -> its weight on the grid of so many bits."""
    rounded = {
        bits: method(model, {n: _at(grid, bits) for n, grid in grids.items()}, context)
        for bits in widths
    }
    return {n: {bits: rounded[bits][n].weight for bits in widths} for n in grids}


def _cost_table(
    costs: Mapping[str, Mapping[int, float]], names: Sequence[str], widths: Sequence[int]
) -> NDArray[np.float64]:
    """[L, W]; CheckFailedError for a sensitivity that is no number or below zero."""
    table = np.array([[costs[name][bits] for bits in widths] for name in names])
    for name, row in zip(names, table, strict=True):
        if not (np.isfinite(row) & (row >= 0)).all():
            raise CheckFailedError(f"sensitivity of {name} is {row.tolist()}")
    return table


def _sizes(
    weights: Mapping[str, Tensor], grids: Mapping[str, Grid], widths: Sequence[int], span: int
) -> NDArray[np.int64]:
    """Bytes [L, W] of each layer at each width, for the narrowest type with which they explain
    best the `span`, the measured bytes between all at the widest and all at the narrowest width.
    """
    tables = [
        np.array(
            [[layer_bytes(w, _at(grids[n], bits), narrowest) for bits in widths]
             for n, w in weights.items()]
        )
        for narrowest in (2, 4, 8)
    ]  # fmt: skip
    return min(tables, key=lambda sizes: abs(int((sizes[:, -1] - sizes[:, 0]).sum()) - span))


def _weigh(artifact: Artifact, context: Context) -> int:
    if context.export_bytes is None:
        raise CheckFailedError("a budget of bytes needs an exporter, and there is none here")
    context.progress(0, 1, "weighing a file")
    return context.export_bytes(artifact)


def _finished(
    grids: Mapping[str, Grid],
    methods: tuple[WeightQuantizer, WeightQuantizer],
    finish: Finish,
    budget: int,
    context: Context,
) -> tuple[Artifact, int]:
    """The artifact by the second method, and by how many bytes its file is over the budget; with
    the first, the faster, it must fit before.
    """
    draft, method = methods
    for rounding in (method,) if draft is method else methods:
        artifact = finish(grids, rounding)
        excess = _weigh(artifact, context) - budget
        if excess > 0:
            break
    return artifact, excess


def _rows(
    model: nn.Module,
    grids: Mapping[str, Grid],
    owners: Mapping[str, str],
    costs: Mapping[str, Mapping[int, float]],
) -> tuple[dict[str, Any], ...]:
    """One row a layer; of one whose bits were given the sensitivities are None. `option` is what
    sets the same bits by hand: +recipe.stages.NAME.`option`.
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
