"""Makes tensors of a Python caller available as a dataset that a config can name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from compressbench.core import digests
from compressbench.core.errors import TransientError, UserError
from compressbench.core.live_objects import live_object
from compressbench.core.task import Task
from compressbench.core.types import DataSpec, Split, SplitName
from compressbench.data import splits, transforms
from compressbench.data.arrays import Arrays, Division
from compressbench.data.partition import SPLITS

TARGET = f"{__name__}.DataInHand"
TASK_TARGET = f"{__name__}.task_in_hand"


@dataclass(frozen=True)
class DataInHand:
    """Splits that were passed to `compressbench.compress`, identified by their digest.

    uint8 images [N, C, H, W] are normalised with mean and standard deviation of the training split;
    float32 inputs [N, ...] are not changed. Nothing is augmented.

    Args:
        sha256: digest of the splits.
        class_names: names of the classes.
        validation_fraction, test_fraction: share of each class of the training samples, in (0, 1),
            for a split that was not passed.
        split_seed: seed of these splits.
        metric: name of the metric of the task.
    """

    sha256: str
    class_names: Sequence[str]
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    metric: str = "accuracy"

    @cached_property
    def _given(self) -> Mapping[SplitName, Split]:
        return _live(self.sha256)

    @cached_property
    def _rows(self) -> dict[SplitName, Tensor]:
        fractions = {"validation": self.validation_fraction, "test": self.test_fraction}
        wanted: dict[SplitName, float] = {
            name: fractions[name] for name in SPLITS[1:] if name not in self._given
        }
        if not wanted:
            return {}
        rows = splits.stratified(self._given["train"].targets, wanted, self.split_seed)
        for name in wanted:
            if len(rows[name]) == 0:
                raise UserError(f"data: too few samples for a {name} split")
        return rows

    @cached_property
    def _splits(self) -> dict[SplitName, Split]:
        # Training cannot use tensors created in inference mode, and splits are cached.
        with torch.inference_mode(False):
            train = self._given["train"]
            cut = {n: Split(train.inputs[r], train.targets[r]) for n, r in self._rows.items()}
            return {**self._given, **cut}

    @cached_property
    def spec(self) -> DataSpec:
        inputs = self.split("train").inputs
        mean: tuple[float, ...] = ()
        std: tuple[float, ...] = ()
        if inputs.dtype == torch.uint8:
            mean, std = transforms.channel_statistics(inputs)
        names = tuple(self.class_names)
        return DataSpec("in_hand", tuple(inputs.shape[1:]), names, mean, std, self.metric)

    def split(self, name: SplitName) -> Split:
        return self._splits[name]

    def manifest(self) -> dict[str, Any]:
        return {
            "sha256": self.sha256,
            "rows": {name: digests.digest([rows]) for name, rows in self._rows.items()},
            "options": {"class_names": list(self.class_names), "metric": self.metric},
        }

    def verify(self) -> None:
        if digest(self._given) != self.sha256:
            raise TransientError("data: inputs or targets changed while in use")

    def prepare(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            return transforms.normalise(inputs, self.spec.mean, self.spec.std)
        return inputs.clone()  # the model may write into its input

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs


def task_in_hand(
    sha256: str,
    task: Task,
    class_names: Sequence[str],
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    metric: str | None = None,
) -> Arrays:
    """Splits of another task than classification that were passed to `compressbench.compress`.

    Args:
        sha256: digest of the splits.
        task: what a model answers.
        class_names: names of the classes, or of the numbers that are answered.
        validation_fraction: share of the training samples, in (0, 1), if there is no such split.
        test_fraction: the same.
        split_seed: seed of these splits.
        metric: one of the task's; its first if None.
    """
    return Arrays(
        "in_hand",
        partial(_live, sha256),
        tuple(class_names),
        task,
        metric,
        Division(validation_fraction, test_fraction, split_seed),
        options={"class_names": list(class_names)},
    )


def _live(sha256: str) -> Mapping[SplitName, Split]:
    given = live_object(sha256)
    if given is None:
        raise UserError(
            "the data were passed from Python: pass them again, to compressbench.compress(data=...)"
        )
    by_name: Mapping[SplitName, Split] = given
    return by_name


def digest(given: Mapping[SplitName, Split]) -> str:
    """SHA-256 of the names, types, shapes and values of the splits."""
    sha = hashlib.sha256()
    for name in SPLITS:
        if name in given:
            for tensor in (given[name].inputs, given[name].targets):
                sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                sha.update(tensor.contiguous().view(-1).numpy().data)
    return sha.hexdigest()
