"""Images of the user: parquet files, or a folder with one subfolder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.input_files import input_file
from compressbench.core.types import DataSpec, Split, SplitName
from compressbench.core.validation import check_integer, check_path, shown
from compressbench.data import splits, transforms
from compressbench.data.decode import MOST_SIDE, Form, first_form
from compressbench.data.labels import class_numbers, targets
from compressbench.data.partition import SPLITS, Partition
from compressbench.data.sources import Folder, Parquet, Source, subfolders


@dataclass(frozen=True)
class Images:
    """Images of any size, with 1 or 3 channels, in two or more classes.

    Set either `train` or `root`. Inputs are normalised with mean and standard deviation of the
    training split.

    Args:
        root: folder with `train/<class>/*.png|jpg` and optionally `validation/` and `test/`, or
            directly with `<class>/*.png|jpg`.
        train, validation, test: one parquet file or a list per split; the last two are optional.
        image_column: column with PNG or JPEG bytes, or structs with a field `bytes`.
        label_column: column with integers or texts.
        class_names: names of the classes; only needed to name integer labels.
        image_size: pixels, one number or [height, width]; images of other sizes are resized. None:
            that of the first training image.
        channels: 1 or 3; None: those of the first training image.
        validation_fraction, test_fraction: share of each class of the training images, in (0, 1),
            for a split without files.
        split_seed: seed of these splits.
        crop_padding: pixels of zero padding before random crops in training.
        flip: mirror training images at random.
        metric: name of the metric of the task.
    """

    root: str | None = None
    train: str | Sequence[str] | None = None
    validation: str | Sequence[str] | None = None
    test: str | Sequence[str] | None = None
    image_column: str = "img"
    label_column: str = "label"
    class_names: Sequence[str] | None = None
    image_size: int | Sequence[int] | None = None
    channels: int | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    crop_padding: int = 4
    flip: bool = True
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        check_path("dataset.root", self.root)
        for name in SPLITS:
            for path in _listed(getattr(self, name)):
                check_path(f"dataset.{name}", path)
        if bool(self.root) == bool(self.train):
            which = "both are" if self.root else "neither is"
            raise UserError(
                "set either dataset.train=<parquet file> or dataset.root=<folder of "
                f"images>; {which} set"
            )
        if self.root and (self.validation or self.test):
            raise UserError("dataset.validation and dataset.test need dataset.train, not root")
        if self.channels not in (None, 1, 3):
            raise UserError(f"dataset.channels must be 1, 3 or null, got {self.channels}")
        size = self._size
        if size is not None and len(size) != 2:
            raise UserError(
                "dataset.image_size must be null, one number of pixels or [height, width], got "
                f"{shown(self.image_size)}"
            )
        for side in size or ():
            check_integer("dataset.image_size", side, 1, MOST_SIDE)

    @property
    def _size(self) -> tuple[int, ...] | None:
        if self.image_size is None or isinstance(self.image_size, int):
            return None if self.image_size is None else (self.image_size, self.image_size)
        return tuple(self.image_size)

    @cached_property
    def _sources(self) -> dict[SplitName, Source]:
        if self.root:
            return _folders(Path(self.root).expanduser())
        named = zip(SPLITS, (self.train, self.validation, self.test), strict=True)
        columns = (self.image_column, self.label_column)
        return {name: Parquet(_paths(name, given), *columns) for name, given in named if given}

    @cached_property
    def _partition(self) -> Partition:
        train = self._sources["train"]
        labels = train.labels()
        if not labels:
            raise UserError(f"{train.name}: contains no images")
        declared = None if self.class_names is None else tuple(self.class_names)
        numbers = class_numbers(labels, declared)
        classes = targets(labels, numbers, train.name)
        fractions = {"validation": self.validation_fraction, "test": self.test_fraction}
        wanted: dict[SplitName, float] = {
            name: fractions[name] for name in SPLITS[1:] if name not in self._sources
        }
        rows = splits.stratified(classes, wanted, self.split_seed) if wanted else {}
        return Partition(self._sources, rows, numbers)

    @cached_property
    def _form(self) -> Form:
        size = None if self._size is None else (self._size[0], self._size[1])
        form = first_form(self._sources["train"], self.channels, size)
        transforms.check_padding(self.crop_padding, form.height, form.width)
        return form

    @cached_property
    def spec(self) -> DataSpec:
        names = tuple(str(name) for name in self.class_names or self._partition.numbers)
        mean, std = transforms.channel_statistics(self.split("train").inputs)
        return DataSpec("images", self._form.shape, names, mean, std, self.metric)

    def split(self, name: SplitName) -> Split:
        return self._partition.split(name, self._form)

    def manifest(self) -> dict[str, Any]:
        return self._partition.manifest(
            {
                "name": "images",
                "image_column": self.image_column,
                "label_column": self.label_column,
                "class_names": None if self.class_names is None else list(self.class_names),
                "image_size": None if self._size is None else list(self._size),
                "channels": self.channels,
                "crop_padding": self.crop_padding,
                "flip": self.flip,
                "metric": self.metric,
            }
        )

    def verify(self) -> None:
        self._partition.verify()

    def prepare(self, inputs: Tensor) -> Tensor:
        return transforms.normalise(inputs, self.spec.mean, self.spec.std)

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return transforms.crop_and_flip(inputs, self.crop_padding, self.flip, generator)


def _paths(split: SplitName, given: str | Sequence[str]) -> tuple[Path, ...]:
    return tuple(input_file(path, f"dataset.{split}") for path in _listed(given))


def _listed(given: str | Sequence[str] | None) -> Sequence[str]:
    return [given] if isinstance(given, str) else given or ()


def _folders(root: Path) -> dict[SplitName, Source]:
    """The folders `root/train`, ... if there is a `train`; otherwise `root` has the classes."""
    names = {path.name for path in subfolders(root)}
    if "train" not in names:
        return {"train": Folder(root)}
    return {name: Folder(root / name) for name in SPLITS if name in names}
