"""AG News, read from `train.csv` and `test.csv` or from one of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compressbench.core.digests import digest
from compressbench.core.errors import UserError
from compressbench.core.input_files import MOST_TEXT_BYTES, exists, input_file, open_input
from compressbench.core.types import DataSpec, Split, SplitName, Tokens
from compressbench.core.validation import check_flag, check_integer, check_path, check_share
from compressbench.data import files, splits, tokens
from compressbench.data.labels import Label, targets
from compressbench.data.tensor_cache import Tensors, cached_tensors

CLASSES = ("World", "Sports", "Business", "Sci/Tech")
NUMBERS: dict[Label, int] = {label: label - 1 for label in range(1, len(CLASSES) + 1)}
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
NAMES = ("train.csv", "test.csv")
SCHEMA = 1


class Texts(NamedTuple):
    """Texts and their class numbers, int64 [N]."""

    texts: list[str]
    targets: Tensor


@dataclass(frozen=True)
class AgNews:
    """News articles in four classes (Zhang et al. 2015, arXiv:1509.01626).

    A text is the title and the description of an article, joined by a space. The tokenizer is
    trained on the training texts.

    Args:
        root: folder with train.csv and test.csv, or only one of them; rows of class (1 to 4), title
            and description.
        vocabulary: maximum number of tokens, at least 258.
        max_tokens: ids per text; longer texts are truncated, shorter ones padded.
        lowercase: convert texts to lower case.
        validation_fraction: share of each class used for validation, in (0, 1).
        test_fraction: share of each class used for testing if there is only one file.
        split_seed: seed of these splits.
        drop_tokens: probability, in [0, 1), of masking an id in training.
        metric: name of the metric of the task.
    """

    root: str | None = None
    vocabulary: int = 8192
    max_tokens: int = 64
    lowercase: bool = True
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    drop_tokens: float = 0.1
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        check_integer("dataset.vocabulary", self.vocabulary, tokens.LEAST_VOCABULARY, 2**20)
        check_integer("dataset.max_tokens", self.max_tokens, 1, 2**15)
        check_flag("dataset.lowercase", self.lowercase)
        check_share("dataset.drop_tokens", self.drop_tokens)
        check_path("dataset.root", self.root)
        if not self.root:
            raise UserError(
                "dataset.root is not set: add dataset.root=<folder with train.csv and "
                "test.csv, or one of them>"
            )
        if not self._files:
            raise UserError(
                f"dataset.root={self.root}: no train.csv or test.csv there; rows need class (1 to "
                f"{len(CLASSES)}), title and description"
            )

    @cached_property
    def _files(self) -> dict[str, Path]:
        folder = Path(self.root or "").expanduser()
        there = {name: folder / name for name in NAMES if exists(folder / name)}
        return {name: input_file(path, "", MOST_TEXT_BYTES) for name, path in there.items()}

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        """The files' entries in the manifest, computed once."""
        return files.describe(self._files)

    @cached_property
    def _parts(self) -> dict[SplitName, tuple[str, Tensor]]:
        """Split -> (file, sorted row numbers)."""
        first = next(iter(self._files))
        own_test = len(self._files) > 1
        fractions: dict[SplitName, float] = {"validation": self.validation_fraction}
        if not own_test:
            fractions["test"] = self.test_fraction
        rows_of = splits.stratified(self._texts[first].targets, fractions, self.split_seed)
        parts = {name: (first, rows) for name, rows in rows_of.items()}
        if own_test:
            parts["test"] = ("test.csv", torch.arange(len(self._texts["test.csv"].texts)))
        for name, (file, rows) in parts.items():
            if len(rows) == 0:
                raise UserError(f"{self._files[file]}: too few texts for a {name} split")
        return parts

    @cached_property
    def _texts(self) -> dict[str, Texts]:
        return {name: read_texts(path) for name, path in self._files.items()}

    def _of(self, name: SplitName) -> Texts:
        file, rows = self._parts[name]
        texts, labels = self._texts[file]
        return Texts([texts[row] for row in rows.tolist()], labels[rows])

    @cached_property
    def _encoded(self) -> Tensors:
        """The ids of each split, and the bytes of tokenizer.json."""

        def make() -> Tensors:
            texts = {name: self._of(name).texts for name in SPLITS}
            tokenizer = tokens.train_tokenizer(
                texts["train"], self.vocabulary, self.max_tokens, self.lowercase
            )
            ids = {str(name): tokens.encode(tokenizer, part) for name, part in texts.items()}
            # The files must match the cache key, even if their modification times were reset.
            files.verify(self._files, self._lines)
            return {
                **ids,
                "tokenizer": torch.frombuffer(bytearray(tokenizer.encode()), dtype=torch.uint8),
            }

        # Training cannot use tensors created in inference mode, and splits are cached.
        with torch.inference_mode(False):
            return cached_tensors({"schema": SCHEMA, **self._source()}, make, self._fits)

    def _fits(self, cached: Tensors) -> bool:
        sizes = {name: (len(self._parts[name][1]), self.max_tokens) for name in SPLITS}
        return "tokenizer" in cached and all(
            name in cached and cached[name].shape == shape for name, shape in sizes.items()
        )

    def _source(self) -> dict[str, Any]:
        """Everything that the ids depend on."""
        return {
            "files": self._lines,
            "rows": {name: digest([rows]) for name, (_, rows) in self._parts.items()},
            "by": tokens.library(),
            "vocabulary": self.vocabulary,
            "max_tokens": self.max_tokens,
            "lowercase": self.lowercase,
        }

    @cached_property
    def tokenizer(self) -> str:
        """The content of tokenizer.json."""
        return self._encoded["tokenizer"].numpy().tobytes().decode()

    @cached_property
    def spec(self) -> DataSpec:
        about = Tokens(tokens.size(self.tokenizer), tokens.PAD, digest([self.tokenizer]))
        return DataSpec("ag_news", (self.max_tokens,), CLASSES, (), (), self.metric, about)

    def companions(self) -> dict[str, str]:
        return {"tokenizer.json": self.tokenizer}

    @cached_property
    def _splits(self) -> dict[SplitName, Split]:
        return {}

    def split(self, name: SplitName) -> Split:
        if name not in self._splits:
            with torch.inference_mode(False):
                self._splits[name] = Split(self._encoded[name], self._of(name).targets)
        return self._splits[name]

    def manifest(self) -> dict[str, Any]:
        assert self.spec.tokens is not None
        return {
            **self._source(),
            "tokenizer": self.spec.tokens.tokenizer,
            "options": {
                "name": "ag_news", "drop_tokens": self.drop_tokens, "metric": self.metric,
            },
        }  # fmt: skip

    def verify(self) -> None:
        files.verify(self._files, self._lines)

    def prepare(self, inputs: Tensor) -> Tensor:
        return inputs.long()

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return tokens.drop(inputs, self.drop_tokens, generator)


def read_texts(path: Path) -> Texts:
    """Read a CSV file; raises UserError for the first row that is not class, title, text."""
    texts: list[str] = []
    labels: list[Label] = []
    try:
        with open_input(path, MOST_TEXT_BYTES) as file:
            lines = io.TextIOWrapper(file, encoding="utf-8", newline="")
            for number, row in enumerate(csv.reader(lines, strict=True)):
                if len(row) != 3:
                    raise UserError(
                        f"{path} row {number}: 3 columns are needed (class, title, description), "
                        f"got {len(row)}"
                    )
                labels.append(_label(row[0]))
                texts.append(f"{row[1]} {row[2]}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a valid CSV file in UTF-8: {error}") from error
    _check_classes(path, labels)
    return Texts(texts, targets(labels, NUMBERS, str(path)))


def _label(text: str) -> Label:
    return int(text) if text.isascii() and text.isdigit() else text


def _check_classes(path: Path, labels: Sequence[Label]) -> None:
    if len(set(labels)) < 2:
        raise UserError(f"{path}: at least two classes are needed, got {sorted(set(labels))}")
