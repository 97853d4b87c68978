"""The handwritten digits of scikit-learn, 8x8 pixels, which need no download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressbench.core.digests import digest
from compressbench.core.errors import TransientError, UserError
from compressbench.core.types import DataSpec, Split, SplitName
from compressbench.core.validation import check_integer
from compressbench.data import splits, transforms

TABLE = "datasets/data/digits.csv.gz"  # 64 pixels and the label
GREY_LEVELS = 16  # pixels are 0 ... 16
MEAN, STD = (0.3061,), (0.3761,)  # of the default training split, in [0, 1]


@dataclass(frozen=True)
class Digits:
    """1,797 grey images of 8x8 pixels in ten classes (Alpaydin and Kaynak 1998, UCI).

    Args:
        validation_fraction: share of each class used for validation, in (0, 1).
        test_fraction: share of each class used for testing, in (0, 1).
        split_seed: seed of the splits.
        max_shift: training images are shifted at random by up to this many pixels, in [0, 7].
        metric: name of the metric of the task.
    """

    validation_fraction: float = 0.2
    test_fraction: float = 0.2
    split_seed: int = 0
    max_shift: int = 1
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        check_integer("dataset.max_shift", self.max_shift, 0, 7)

    @property
    def spec(self) -> DataSpec:
        names = tuple(str(digit) for digit in range(10))
        return DataSpec("digits", (1, 8, 8), names, MEAN, STD, self.metric)

    @cached_property
    def _all(self) -> Split:
        return _load()

    @cached_property
    def _rows(self) -> dict[SplitName, Tensor]:
        fractions: dict[SplitName, float] = {
            "validation": self.validation_fraction,
            "test": self.test_fraction,
        }
        return splits.stratified(self._all.targets, fractions, self.split_seed)

    def split(self, name: SplitName) -> Split:
        # Training cannot use tensors created in inference mode, and splits are cached.
        with torch.inference_mode(False):
            rows = self._rows[name]
            return Split(self._all.inputs[rows], self._all.targets[rows])

    def manifest(self) -> dict[str, Any]:
        return {
            "sha256": _contents(self._all),
            "rows": {name: digest([rows]) for name, rows in self._rows.items()},
            "options": {"name": "digits", "max_shift": self.max_shift, "metric": self.metric},
        }

    def verify(self) -> None:
        if _contents(_load()) != _contents(self._all):
            raise TransientError("dataset: scikit-learn's digits changed while in use")

    def prepare(self, inputs: Tensor) -> Tensor:
        return transforms.normalise(inputs, MEAN, STD)

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return transforms.random_crop(inputs, self.max_shift, generator)


def _load() -> Split:
    """Read all digits, with pixels scaled to 0 ... 255.

    Reads the table that scikit-learn ships, since importing scikit-learn takes a second.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("dataset=digits: scikit-learn, which contains the digits, is not installed")
    table = np.loadtxt(Path(package.origin).parent / TABLE, delimiter=",", dtype=np.int64)
    pixels = torch.from_numpy(table[:, :-1]).mul(255 / GREY_LEVELS).round().to(torch.uint8)
    return Split(pixels.view(-1, 1, 8, 8), torch.from_numpy(table[:, -1].copy()))


def _contents(split: Split) -> str:
    return digest([split.inputs, split.targets])
