"""Train on from where the model stands; masked weights stay zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressbench.checks import check_share
from compressbench.core import TRAINED, Artifact, Context, Outcome
from compressbench.stages.schedule import Optimizer, Schedule
from compressbench.stages.train import GRIDS, cross_entropy, descend


@dataclass(frozen=True)
class Finetune:
    """Cross-entropy training of a model that is trained already. Options: `Schedule`."""

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset()
    destroys: ClassVar[frozenset[str]] = GRIDS

    epochs: float
    batch_size: int
    optimizer: Optimizer
    warmup: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        self.schedule()
        check_share("label_smoothing", self.label_smoothing)

    def schedule(self) -> Schedule:
        return Schedule(self.epochs, self.batch_size, self.optimizer, self.warmup)

    def passes(self, train_images: int) -> tuple[int, int]:
        return round(self.epochs * train_images), 0

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        loss = cross_entropy(self.label_smoothing)
        return descend(inputs["model"], loss, self.schedule(), context)
