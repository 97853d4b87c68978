"""Measures the BatchNorm statistics of a model on the training images: a stage of its own."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from compressbench.core.batchnorm import batchnorm_layers
from compressbench.core.errors import UserError
from compressbench.core.types import (
    ACTIVATION_QUANTIZED,
    TRAINED,
    Artifact,
    Context,
    DataSpec,
    Outcome,
)
from compressbench.core.validation import check_integer
from compressbench.training.batchnorm import reestimate_batchnorm_

WITHOUT = "recalibrate: the model has no BatchNorm with running statistics; leave the stage out"


@dataclass(frozen=True)
class Recalibrate:
    """Measure mean and variance of every BatchNorm layer anew; weights stay as they are.

    For a model whose data are not those of its statistics: another domain, or a checkpoint whose
    statistics went stale (Li et al. 2016, arXiv:1603.04779). What a fit on augmented images tuned
    is given up, so a model that was just trained on these data may lose. Weights may be quantized
    already, but not activations, whose ranges belong to the old statistics.

    Args:
        images: Number of training images, at least 2, prepared but not augmented.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset()
    destroys: ClassVar[frozenset[str]] = frozenset({ACTIVATION_QUANTIZED})

    images: int = 1024

    def __post_init__(self) -> None:
        check_integer("images", self.images, 2)

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject a model without statistics to measure, before the recipe runs."""
        if not batchnorm_layers(model):
            raise UserError(WITHOUT)

    def passes(self, train_images: int) -> tuple[int, int]:
        return 0, min(self.images, train_images)

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        layers = reestimate_batchnorm_(model, context, self.images)
        if not layers:  # all were folded by an earlier stage, or are never called
            raise UserError(WITHOUT)
        note = f"BatchNorm statistics of {layers} layers were measured on training images"
        return Outcome(start.changed(model), notes=(note,))
