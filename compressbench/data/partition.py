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
        lines = {name: files.describe(source.files) for name, source in self.sources.items()}
        self._check_apart(lines)
        return lines

    def _check_apart(self, lines: Mapping[SplitName, list[dict[str, Any]]]) -> None:
        seen: dict[str, SplitName] = {}
        for name, source in self.sources.items():
            for line in lines[name]:
                other = seen.setdefault(line["sha256"], name)
                # Duplicates are common among single images, but not among parquet files.
                if other != name and source.image_column is not None:
                    raise UserError(
                        f"{source.name}: the {name} split has the same content as the {other} split"
                    )

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
