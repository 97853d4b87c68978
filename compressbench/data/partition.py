"""Reads, describes and verifies splits that are files or parts of the training files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compressbench.core.digests import digest
from compressbench.core.errors import UserError
from compressbench.core.types import Split, SplitName
from compressbench.data import files
from compressbench.data.decode import Form, decoded, decoder
from compressbench.data.labels import Label, targets
from compressbench.data.sources import Source

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Partition:
    """Splits of a dataset.

    `sources` has "train" and each split with separate files. `rows` has the row numbers of the
    splits into which the training source is divided; empty if it is not. `numbers` maps labels to
    class numbers.
    """

    sources: Mapping[SplitName, Source]
    rows: Mapping[SplitName, Tensor]
    numbers: dict[Label, int]

    def __post_init__(self) -> None:
        for name, rows in self.rows.items():
            if len(rows) == 0:
                raise UserError(f"{self.sources['train'].name}: too few images for a {name} split")
        self._check_names_alike()

    def _check_names_alike(self) -> None:
        names = self.sources["train"].class_names
        for split, source in self.sources.items():
            others = source.class_names
            if names is not None and others is not None and others != names:
                raise UserError(
                    f"{source.name}: calls the classes of the {split} split {others}, those of "
                    f"train are {names}: a label would mean another class in each"
                )

    @cached_property
    def _splits(self) -> dict[tuple[SplitName, Form], Split]:
        return {}

    def split(self, name: SplitName, form: Form) -> Split:
        """The split, decoded or read from the cache."""
        if (name, form) not in self._splits:
            self._splits[name, form] = self._read(name, form)
        return self._splits[name, form]

    def _read(self, name: SplitName, form: Form) -> Split:
        source = self.sources.get(name, self.sources["train"])
        rows = self.rows.get(name)
        # Training cannot use tensors created in inference mode, and splits are cached.
        with torch.inference_mode(False):
            classes = targets(source.labels(), self.numbers, source.name)
            inputs = decoded(source, form)
            return Split(inputs, classes) if rows is None else Split(inputs[rows], classes[rows])

    @cached_property
    def files(self) -> Mapping[SplitName, list[dict[str, Any]]]:
        """The manifest entries of every source, computed once."""
        return {name: files.describe(source.files) for name, source in self.sources.items()}

    def manifest(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Plain JSON: files, digests of the row numbers, decoder, and the dataset's options."""
        return {
            "files": dict(self.files),
            "rows": {name: digest([rows]) for name, rows in self.rows.items()},
            "decoder": decoder(),
            "options": dict(options),
        }

    def verify(self) -> None:
        for name, source in self.sources.items():
            files.verify(source.files, self.files[name])
