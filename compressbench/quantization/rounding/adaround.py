"""AdaRound: learns to round each weight up or down, to preserve the outputs of its layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.layer_inputs import WorkingCopies
from compressbench.core.grid import Grid, GridWeight
from compressbench.core.journal import Journal
from compressbench.core.protocols import Observer
from compressbench.core.types import Context
from compressbench.core.validation import check_integer
from compressbench.quantization.rounding.layer_by_layer import begun, rounded_in_order
from compressbench.quantization.rounding.reconstruction import Fit, fit_layer


@dataclass(frozen=True)
class AdaRound:
    """argmin over V of E |W x - W'(V) x'|^2 + penalty, with W' = s * clip(floor(W / s) + h(V)).

    x and x' are the inputs of the layer in the float model and in the model whose earlier layers
    are already quantized. Every iteration uses the error over all images, which depends on sums
    of x' x'^T and W (x - x') x'^T only: 4 K^2 bytes for K weights per output, for any number of
    images. Outputs with a larger error than with rounding to nearest are rounded to nearest.

    Nagel et al. 2020 (arXiv:2004.10568), equations 21 to 25. The paper does not use relative
    errors, and has a smaller learning rate for 10,000 iterations on batches.

    Args:
        ranges: Observer that determines the scales s.
        images: Number of training images, at least 2.
        iterations: Steps of Adam for each layer.
        learning_rate: Learning rate of V.
        regularization: Weight of the penalty (see `Fit`).
        warmup: Share of the iterations without penalty, in [0, 1).
    """

    ranges: Observer
    images: int = 512
    iterations: int = 500
    learning_rate: float = 0.2
    regularization: float = 10.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        check_integer("images", self.images, 2)
        self.fit()

    def fit(self) -> Fit:
        """The options of the optimization."""
        return Fit(self.iterations, self.learning_rate, self.regularization, self.warmup)

    def __call__(
        self, model: nn.Module, grids: Mapping[str, Grid], context: Context
    ) -> dict[str, GridWeight]:
        def fitted(moments: Moments, grid: Grid, kept: Journal) -> GridWeight:
            return fit_layer(moments, grid, self.ranges, self.fit(), journal=kept)

        journal, models = begun(self, model, grids, context), WorkingCopies.of(model, context)
        return rounded_in_order(models, grids, fitted, context, self.images, journal)
