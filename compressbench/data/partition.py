"""Which rows of which source make each split: reading, manifest and verification of them."""

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
    """`sources` holds "train" and the splits with files of their own; `rows` says which rows of
    the training source make the splits that it is divided into, and is empty where it is not.
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
        """Decode what the split needs, or read it where it was decoded before."""
        if (name, form) not in self._splits:
            self._splits[name, form] = self._read(name, form)
        return self._splits[name, form]

    def _read(self, name: SplitName, form: Form) -> Split:
        source = self.sources.get(name, self.sources["train"])
        rows = self.rows.get(name)
        # Splits outlive an evaluation in inference mode, whose tensors training could not use.
        with torch.inference_mode(False):
            found = targets(source.labels(), self.numbers, source.name)
            inputs = decoded(source, form)
            return Split(inputs, found) if rows is None else Split(inputs[rows], found[rows])

    @cached_property
    def files(self) -> Mapping[SplitName, list[dict[str, Any]]]:
        """The manifest's lines of every source, taken once."""
        lines = {name: files.describe(source.files) for name, source in self.sources.items()}
        self._check_apart(lines)
        return lines

    def _check_apart(self, lines: Mapping[SplitName, list[dict[str, Any]]]) -> None:
        seen: dict[str, SplitName] = {}
        for name, source in self.sources.items():
            for line in lines[name]:
                other = seen.setdefault(line["sha256"], name)
                # Among single images a few copies are usual; a whole file of rows never is.
                if other != name and source.image_column is not None:
                    raise UserError(
                        f"{source.name}: the {name} split has the same content as the {other} split"
                    )

    def manifest(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Plain JSON: files, digests of the rows, how they are decoded, the dataset's options."""
        return {
            "files": dict(self.files),
            "rows": {name: digest([rows]) for name, rows in self.rows.items()},
            "decoder": decoder(),
            "options": dict(options),
        }

    def verify(self) -> None:
        for name, source in self.sources.items():
            files.verify(source.files, self.files[name])
