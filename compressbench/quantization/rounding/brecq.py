"""BRECQ: learns the rounding of all layers of a block together, to preserve its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressbench.analysis.layer_inputs import (
    PASS_BATCH,
    calibration_batches,
    input_of,
    layer_moments,
    working_copies,
)
from compressbench.core.distributed import mean_over_ranks, world_size
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, GridWeight, choose_scale, on_cpu, round_to_grid
from compressbench.core.protocols import Observer
from compressbench.core.types import Context
from compressbench.core.validation import check_integer, is_number
from compressbench.quantization.rounding.blocks import Unit, find_units
from compressbench.quantization.rounding.reconstruction import Fit, SoftSteps, fit_, fit_layer

CACHE_BYTES = 2 * 2**30  # limit on cached inputs and outputs of a block, per process


@dataclass(frozen=True)
class Brecq:
    """argmin over V of E |B(x; W) - B(x'; W'(V))|^2 + penalty, for each residual block B.

    W' = s * clip(floor(W / s) + h(V)) for all layers in B together. x and x' are the inputs of B
    in the float model and in the model whose earlier blocks are already quantized. BatchNorm in B
    normalizes each batch, since its statistics are measured again later. Layers outside of blocks
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
        models = working_copies(model, context.runtime.device)
        example = next(calibration_batches(context, self.images))[:2]
        units = find_units(models[0], list(grids), example)
        generator = torch.Generator().manual_seed(context.seed)
        rounded: dict[str, GridWeight] = {}
        for number, unit in enumerate(units):
            context.progress(number, len(units), f"rounding {unit.name}")
            unit_grids = {name: grids[name] for name in unit.layers}
            results = (
                self._fit_block(Block.of(unit, models, context, self.images), unit_grids, generator)
                if unit.is_block
                else self._fit_layer(unit.name, models, unit_grids[unit.name], context)
            )
            for name, result in results.items():
                models[1].get_parameter(f"{name}.weight").copy_(result.weight)
            rounded |= results
        context.progress(len(units), len(units), "rounding")
        return {name: on_cpu(rounded[name]) for name in grids}

    def _fit_layer(
        self, name: str, models: tuple[nn.Module, nn.Module], grid: Grid, context: Context
    ) -> dict[str, GridWeight]:
        moments = layer_moments(name, models, context, self.images)
        return {name: fit_layer(moments, grid, self.ranges, self.fit(), self.scale_learning_rate)}

    def _fit_block(
        self, block: Block, grids: Mapping[str, Grid], generator: torch.Generator
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

        fit_(list(soft.values()), error, self.fit(), self.scale_learning_rate)
        fitted = {name: part.rounded() for name, part in soft.items()}
        return fitted if block.total_error(fitted) < usual else nearest


@dataclass(frozen=True)
class Block:
    """A block before quantization, its inputs x' and its target outputs for x."""

    unit: Unit
    module: nn.Module
    inputs: Tensor
    targets: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, unit: Unit, models: tuple[nn.Module, nn.Module], context: Context, images: int
    ) -> Block:
        """Collect inputs and targets of `unit` from the float and the quantized model."""
        reference, quantized = models
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for batch in calibration_batches(context, images):
            inputs.append(input_of(quantized, unit.name, batch))
            clean = input_of(reference, unit.name, batch)
            targets.append(reference.get_submodule(unit.name)(clean))
            if sum(t.nbytes for t in (*inputs, *targets)) > CACHE_BYTES:
                break
        module = quantized.get_submodule(unit.name)
        return cls(unit, module, torch.cat(inputs), torch.cat(targets))

    def error(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """The mean squared error of the outputs with these weights, for the images in `rows`."""
        rows = rows.to(self.inputs.device)
        named = {self.unit.weight_of(name): weight for name, weight in weights.items()}
        outputs: Tensor = functional_call(self.module, named, (self.inputs[rows],))
        return (outputs - self.targets[rows]).square().mean()

    @torch.no_grad()
    def total_error(self, results: Mapping[str, GridWeight]) -> float:
        """The mean squared error over all images of all processes."""
        weights = {name: result.weight for name, result in results.items()}
        parts = torch.split(torch.arange(len(self.inputs)), PASS_BATCH)
        errors = [self.error(weights, rows) for rows in parts]
        return float(mean_over_ranks(torch.stack(errors).mean()))
