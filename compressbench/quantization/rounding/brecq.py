"""BRECQ: learns the rounding of all layers of a block together, to preserve its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressbench.analysis.layer_inputs import (
    PASS_BATCH,
    WorkingCopies,
    calibration_batches,
    layer_moments,
)
from compressbench.core.batchnorm import Pairs, Sums
from compressbench.core.distributed import mean_over_ranks, world_size
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, GridWeight, choose_scale, round_to_grid
from compressbench.core.journal import Journal
from compressbench.core.protocols import Observer
from compressbench.core.types import Context
from compressbench.core.validation import check_integer, is_number
from compressbench.quantization.rounding.blocks import Unit, find_units
from compressbench.quantization.rounding.layer_by_layer import begun, finished
from compressbench.quantization.rounding.reconstruction import Fit, SoftSteps, fit_, fit_layer

CACHE_BYTES = 2 * 2**30  # limit on cached inputs and outputs of a block, per process


@dataclass(frozen=True)
class Brecq:
    """argmin over V of E |B(x; W) - B(x'; W'(V))|^2 + penalty, for each residual block B.

    W' = s * clip(floor(W / s) + h(V)) for all layers in B together. x and x' are the inputs of B
    in the float model and in the model whose earlier blocks are already quantized. BatchNorm in B
    normalizes as it will later (`WorkingCopies`), by the batch at hand. Layers outside of blocks
    (`find_units`) are fitted alone, as in `AdaRound`. Blocks with a larger error than with
    rounding to nearest are rounded to nearest. Gradients are averaged over processes.

    Li et al. 2021 (arXiv:2102.05426), without Fisher weights: all outputs have equal weight.

    Args:
        ranges: Observer that determines the initial scales s.
        images: Number of training images, at least 2; fewer are used if their inputs and outputs
            exceed 2 GiB.
        iterations: Steps of Adam for each block.
        batch_size: Images per step, at least 2.
        learning_rate: Learning rate of V.
        scale_learning_rate: Learning rate of the scales in [0, 1]. 0 keeps them fixed, as do
            power-of-two scales.
        regularization: Weight of the penalty (see `Fit`).
        warmup: Share of the iterations without penalty, in [0, 1).
    """

    ranges: Observer
    images: int = 1024
    iterations: int = 300
    batch_size: int = 32
    learning_rate: float = 0.1
    scale_learning_rate: float = 0.001
    regularization: float = 10.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        check_integer("images", self.images, 2)
        check_integer("batch_size", self.batch_size, 2)
        if not is_number(self.scale_learning_rate) or not 0 <= self.scale_learning_rate <= 1:
            raise UserError(
                f"scale_learning_rate must be a number in [0, 1], got {self.scale_learning_rate!r}"
            )
        self.fit()

    def fit(self) -> Fit:
        """The options of the optimization."""
        return Fit(self.iterations, self.learning_rate, self.regularization, self.warmup)

    def __call__(
        self, model: nn.Module, grids: Mapping[str, Grid], context: Context
    ) -> dict[str, GridWeight]:
        models = WorkingCopies.of(model, context)
        example = next(calibration_batches(context, self.images))[:2]
        units = find_units(models.reference, list(grids), example)
        generator = torch.Generator().manual_seed(context.seed)
        rounded: dict[str, GridWeight] = {}
        journal = begun(self, model, grids, context)
        before = journal.before(len(units))
        for number, unit in enumerate(units):
            context.progress(number, len(units), f"rounding {unit.name}{before}")
            inner = replace(context, journal=journal.within(unit.name))
            fitted = partial(self._fit_unit, unit, models, grids, inner, generator)
            results = finished(journal, unit.name, fitted, generator)
            for name, result in results.items():
                models.changed.get_parameter(f"{name}.weight").copy_(result.weight)
            rounded |= results
        context.progress(len(units), len(units), "rounding")
        return {name: rounded[name] for name in grids}

    def _fit_unit(
        self,
        unit: Unit,
        models: WorkingCopies,
        grids: Mapping[str, Grid],
        context: Context,
        generator: torch.Generator,
    ) -> dict[str, GridWeight]:
        if not unit.is_block:
            return self._fit_layer(unit.name, models, grids[unit.name], context)
        block = Block.of(unit, models, context, self.images)
        return self._fit_block(
            block, {name: grids[name] for name in unit.layers}, generator, context.journal
        )

    def _fit_layer(
        self, name: str, models: WorkingCopies, grid: Grid, context: Context
    ) -> dict[str, GridWeight]:
        moments = layer_moments(name, models, context, self.images)
        rate, journal = self.scale_learning_rate, context.journal
        return {name: fit_layer(moments, grid, self.ranges, self.fit(), rate, journal)}

    def _fit_block(
        self,
        block: Block,
        grids: Mapping[str, Grid],
        generator: torch.Generator,
        journal: Journal,
    ) -> dict[str, GridWeight]:
        soft, nearest = {}, {}
        for name, grid in grids.items():
            weight = block.module.get_parameter(block.unit.weight_of(name)).detach().clone()
            scale, zero_point = choose_scale(weight, grid, self.ranges)
            soft[name] = SoftSteps(weight, grid, scale, zero_point)
            nearest[name] = round_to_grid(weight, scale, grid, zero_point)
        usual = block.total_error(nearest)
        share = max(2, self.batch_size // world_size())

        def error() -> Tensor:
            rows = torch.randperm(len(block.inputs), generator=generator)[:share]
            weights = {name: part.weight() for name, part in soft.items()}
            return block.error(weights, rows) / (usual or 1.0)

        rate = self.scale_learning_rate
        fit_(list(soft.values()), error, self.fit(), rate, journal, generator)
        fitted = {name: part.rounded() for name, part in soft.items()}
        return fitted if block.total_error(fitted) < usual else nearest


@dataclass(frozen=True)
class Block:
    """A block before quantization, its inputs x' and its target outputs for x.

    With `pairs`, `sums` are those of the inputs of its BatchNorm layers for x, call by call.
    """

    unit: Unit
    module: nn.Module
    inputs: Tensor
    targets: Tensor
    pairs: Pairs | None = None
    sums: Mapping[str, Sequence[Sums]] = field(default_factory=dict)

    @classmethod
    @torch.no_grad()
    def of(cls, unit: Unit, models: WorkingCopies, context: Context, images: int) -> Block:
        """Collect inputs and targets of `unit` from the float and the quantized model."""
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        sums: list[dict[str, list[Sums]]] = []
        for batch in calibration_batches(context, images):
            clean, seen = models.inputs_of(unit.name, batch, drift=True)
            inputs.append(seen)
            targets.append(models.reference.get_submodule(unit.name)(clean))
            sums.append({} if models.pairs is None else models.pairs.take())
            if sum(t.nbytes for t in (*inputs, *targets)) > CACHE_BYTES:
                break
        module = models.changed.get_submodule(unit.name)
        joined = {name: [Sums.joined(call) for call in zip(*(s[name] for s in sums), strict=True)]
                  for name in sums[0]}  # fmt: skip
        return cls(unit, module, torch.cat(inputs), torch.cat(targets), models.pairs, joined)

    def error(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """The mean squared error of the outputs with these weights, for the images in `rows`."""
        rows = rows.to(self.inputs.device)
        named = {self.unit.weight_of(name): weight for name, weight in weights.items()}
        if self.pairs is not None:
            self.pairs.expect({n: [s.part(rows) for s in calls] for n, calls in self.sums.items()})
        outputs: Tensor = functional_call(self.module, named, (self.inputs[rows],))
        return (outputs - self.targets[rows]).square().mean()

    @torch.no_grad()
    def total_error(self, results: Mapping[str, GridWeight]) -> float:
        """The mean squared error over all images of all processes."""
        weights = {name: result.weight for name, result in results.items()}
        parts = torch.split(torch.arange(len(self.inputs)), PASS_BATCH)
        errors = [self.error(weights, rows) for rows in parts]
        return float(mean_over_ranks(torch.stack(errors).mean()))
