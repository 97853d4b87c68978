"""Arrays of any task as a dataset: from a file of the user's, or from a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compressbench.core.digests import digest
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.task import Task
from compressbench.core.types import DataSpec, Split, SplitName, Tokens
from compressbench.data import splits, transforms
from compressbench.data.partition import SPLITS
from compressbench.tasks.regression import Regression


@dataclass(frozen=True)
class Division:
    """How samples are divided where the source does not: shares in (0, 1), drawn by `seed`."""

    validation_fraction: float = 0.2
    test_fraction: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Arrays:
    """A dataset of arrays in memory.

    uint8 images are normalised; float32 inputs and ids are not changed.
    Targets of a regression without `offset` and `scale` are standardised by the training split.

    Args:
        name: for reports.
        read: returns the splits, or the samples under "train" alone; the same at every call.
        names: of the classes, or of the numbers that are answered.
        task: what a model answers.
        metric: one of the task's; its first if None.
        division: of samples that are not divided.
        tokens: of inputs that are ids.
        options: plain JSON that identifies how the arrays were made.
        mean: of the channels of uint8 images in [0, 1]; that of the training split if None.
        std: the same.
    """

    name: str
    read: Callable[[], Mapping[SplitName, Split]]
    names: tuple[str, ...]
    task: Task
    metric: str | None = None
    division: Division = field(default_factory=Division)
    tokens: Tokens | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @cached_property
    def _given(self) -> Mapping[SplitName, Split]:
        with torch.inference_mode(False):  # training cannot use tensors made in that mode
            return self.read()

    @cached_property
    def _rows(self) -> dict[SplitName, Tensor]:
        """Rows of the samples for each split that is not given."""
        shares: dict[SplitName, float] = {
            "validation": self.division.validation_fraction,
            "test": self.division.test_fraction,
        }
        wanted = {name: share for name, share in shares.items() if name not in self._given}
        if not wanted:
            return {}
        targets = self._given["train"].targets
        if targets.ndim == 1 and targets.dtype == torch.int64:
            rows = splits.stratified(targets, wanted, self.division.seed)
        else:
            rows = splits.at_random(len(targets), wanted, self.division.seed)
        for name, chosen in rows.items():
            if len(chosen) == 0:
                raise UserError(f"dataset {self.name}: too few samples for a {name} split")
        return rows

    @cached_property
    def _divided(self) -> dict[SplitName, Split]:
        with torch.inference_mode(False):
            given = self._given["train"]
            cut = {n: Split(given.inputs[r], given.targets[r]) for n, r in self._rows.items()}
            return {**self._given, **cut}

    @cached_property
    def _resolved(self) -> Task:
        """The task; a regression with the offset and scale of the training targets."""
        if not isinstance(self.task, Regression) or self.task.scale is not None:
            return self.task
        values = self._divided["train"].targets.double()
        spread = values.std(0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        return replace(
            self.task, offset=tuple(values.mean(0).tolist()), scale=tuple(spread.tolist())
        )

    @cached_property
    def _splits(self) -> dict[SplitName, Split]:
        task = self._resolved
        if not isinstance(task, Regression) or task.scale is None or task.offset is None:
            return self._divided
        offset, scale = torch.tensor(task.offset), torch.tensor(task.scale)
        return {
            name: Split(split.inputs, (split.targets - offset) / scale)
            for name, split in self._divided.items()
        }

    @cached_property
    def spec(self) -> DataSpec:
        inputs = self._divided["train"].inputs
        mean, std = self.mean or (), self.std or ()
        if inputs.dtype == torch.uint8 and not mean:
            mean, std = transforms.channel_statistics(inputs)
        metric = self.task.metrics[0] if self.metric is None else self.metric
        shape = tuple(inputs.shape[1:])
        return DataSpec(
            self.name, shape, self.names, mean, std, metric, self.tokens, self._resolved
        )

    def split(self, name: SplitName) -> Split:
        return self._splits[name]

    def manifest(self) -> dict[str, Any]:
        return {
            "sha256": contents(self._given),
            "rows": {name: digest([rows]) for name, rows in self._rows.items()},
            "options": {**self.options, "task": self.task.name, "metric": self.spec.metric},
        }

    def verify(self) -> None:
        if contents(self.read()) != contents(self._given):
            raise CheckFailedError(f"dataset {self.name}: its arrays changed while in use")

    def prepare(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            return transforms.normalise(inputs, self.spec.mean, self.spec.std)
        if self.tokens is not None:
            return inputs.long()
        return inputs.clone()  # the model may write into its input

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs


def contents(given: Mapping[SplitName, Split]) -> str:
    """SHA-256 of all arrays, with the names of their splits."""
    return digest(
        part
        for name in SPLITS
        if name in given
        for part in (name, given[name].inputs, given[name].targets)
    )
