"""CIFAR-10, read from `train.parquet` and `test.parquet`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.input_files import exists
from compressbench.core.types import DataSpec, Split, SplitName
from compressbench.core.validation import check_path
from compressbench.data import splits, transforms
from compressbench.data.decode import Form
from compressbench.data.labels import class_numbers, targets
from compressbench.data.partition import Partition
from compressbench.data.sources import Parquet

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MEAN = (0.4914, 0.4822, 0.4465)  # RGB in [0, 1], over the training images
STD = (0.2470, 0.2435, 0.2616)
FORM = Form(channels=3, height=32, width=32)


@dataclass(frozen=True)
class Cifar10:
    """50,000 + 10,000 colour images of 32x32 pixels in ten classes (Krizhevsky 2009).

    Args:
        root: folder with train.parquet and test.parquet.
        validation_rows: text file with the row numbers of train.parquet to use for validation, one
            per line, counted from 0; replaces `validation_fraction`.
        validation_fraction: share of each class of the training images, in (0, 1).
        split_seed: seed of that split.
        image_column: column with PNG or JPEG bytes, or structs with a field `bytes`.
        label_column: column with integers in [0, 9].
        crop_padding: pixels of zero padding before random crops in training, in [0, 31].
        flip: mirror training images at random.
        metric: name of the metric of the task.
    """

    root: str | None = None
    validation_rows: str | None = None
    validation_fraction: float = 0.1
    split_seed: int = 0
    image_column: str = "img"
    label_column: str = "label"
    crop_padding: int = 4
    flip: bool = True
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        check_path("dataset.root", self.root)
        check_path("dataset.validation_rows", self.validation_rows)
        if not self.root:
            raise UserError(
                "dataset.root is not set: add dataset.root=<folder with train.parquet and "
                "test.parquet>"
            )
        for name in ("train.parquet", "test.parquet"):
            if not exists(self._folder / name):
                raise UserError(
                    f"dataset.root={self.root}: no {name} there; train.parquet and test.parquet "
                    f"are needed, with the columns {self.image_column} and {self.label_column}"
                )
        transforms.check_padding(self.crop_padding, FORM.height, FORM.width)

    @property
    def _folder(self) -> Path:
        return Path(self.root or "").expanduser()

    @property
    def spec(self) -> DataSpec:
        return DataSpec("cifar10", FORM.shape, CLASSES, MEAN, STD, self.metric)

    @cached_property
    def _partition(self) -> Partition:
        columns = (self.image_column, self.label_column)
        train = Parquet((self._folder / "train.parquet",), *columns)
        test = Parquet((self._folder / "test.parquet",), *columns)
        labels = train.labels()
        numbers = class_numbers(labels, CLASSES)
        classes = targets(labels, numbers, train.name)
        return Partition({"train": train, "test": test}, self._rows(classes), numbers)

    def _rows(self, classes: Tensor) -> dict[SplitName, Tensor]:
        if self.validation_rows:
            return splits.by_rows(Path(self.validation_rows).expanduser(), len(classes))
        return splits.stratified(classes, {"validation": self.validation_fraction}, self.split_seed)

    def split(self, name: SplitName) -> Split:
        return self._partition.split(name, FORM)

    def manifest(self) -> dict[str, Any]:
        return self._partition.manifest(
            {
                "name": "cifar10",
                "image_column": self.image_column,
                "label_column": self.label_column,
                "crop_padding": self.crop_padding,
                "flip": self.flip,
                "metric": self.metric,
            }
        )

    def verify(self) -> None:
        self._partition.verify()

    def prepare(self, inputs: Tensor) -> Tensor:
        return transforms.normalise(inputs, MEAN, STD)

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return transforms.crop_and_flip(inputs, self.crop_padding, self.flip, generator)
