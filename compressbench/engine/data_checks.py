"""Checks a dataset before it is used: its labels, and rows that are in more than one split.

Rows are compared by what a model gets, before `prepare`: the pixels of a decoded image, the ids of
a text, the numbers of an array. So an image that was encoded again without loss is the same row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.types import Data, Split, SplitName
from compressbench.store.entries import Store
from compressbench.store.sources import source_digest
from compressbench.tasks.choice import task_of
from compressbench.tasks.classification import CLASSIFICATION

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
SCHEMA = 1
_NAMED = 3  # classes that a message names
_ROWS_AT_ONCE = 4096
_LARGE_BYTES = 2**25  # of all inputs; the counts of larger ones are kept in the store


@dataclass(frozen=True)
class Shared:
    """Rows of a split that are in an earlier split, too: how many of all, and the first of them."""

    split: str
    count: int
    total: int
    row: int
    other_split: str
    other_row: int

    @property
    def share(self) -> float:
        return self.count / self.total

    def __str__(self) -> str:
        others = "training" if self.split == "validation" else "training or validation"
        return (
            f"{self.count:,} of {self.total:,} {self.split} rows ({self.share:.1%}) are {others} "
            f"rows, too (such as row {self.row}, which is row {self.other_row} of "
            f"{self.other_split})"
        )


@dataclass(frozen=True)
class Conflicts:
    """Rows with the content of an earlier row but another class, and the first such pair."""

    count: int
    row: str
    other_row: str

    def __str__(self) -> str:
        return (
            f"{self.count:,} rows have the content of another row but another class (such as "
            f"{self.row} and {self.other_row})"
        )


def check_data(
    data: Data, identity: Mapping[str, Any], store: Store, most_shared: float
) -> tuple[str, ...]:
    """Check labels and rows; return a line for everything that the user should know.

    `identity` identifies the data (see `data_identity`). Raises UserError for labels that cannot
    be used, and where a larger share than `most_shared` of the validation or test rows is in an
    earlier split.
    """
    task, single = task_of(data.spec), task_of(data.spec).name == CLASSIFICATION.name
    if data.spec.class_names or task.learns:
        _check_names(data.spec.class_names, 2 if task.distribution == "classes" else 1)
    splits = {name: data.split(name) for name in SPLITS}
    for name, split in splits.items():
        _check_rows(name, split)
        if single:
            _check_labels(name, split, len(data.spec.class_names))
        else:
            task.check(data.spec, split, f"dataset: the {name} split")
    found = _counted(splits, identity, store)
    shared = [Shared(**each) for each in found["shared"]]
    for each in shared:
        if each.share > most_shared:
            raise UserError(
                f"dataset: {each}, and more than max_overlap={most_shared:g} allows: take them "
                f"out of one split, or set max_overlap={_above(each.share):g}"
            )
    lines = [f"dataset: {each}" for each in shared]
    lines += [f"dataset: {Conflicts(**each)}" for each in found["conflicts"]]
    return (*(_absent_classes(splits, data.spec.class_names) if single else ()), *lines)


def _above(share: float) -> float:
    """A share of two decimals that allows `share`."""
    return min(1.0, -(-share * 100 // 1) / 100)


def _check_names(names: Sequence[str], least: int) -> None:
    if len(names) < least:
        what = "two classes are" if least > 1 else "one name of what is answered is"
        raise UserError(f"dataset: at least {what} needed, got {list(names)}")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"dataset: class names must be texts and not empty, got {name!r}")
        if name.strip() in seen:
            raise UserError(f"dataset: class names must differ, but {name.strip()!r} occurs twice")
        seen.add(name.strip())


def _check_rows(name: SplitName, split: Split) -> None:
    if len(split.inputs) != len(split.targets):
        raise UserError(
            f"dataset: the {name} split has {len(split.inputs)} inputs, but {len(split.targets)} "
            "labels"
        )
    if len(split.targets) == 0:
        raise UserError(f"dataset: the {name} split is empty")


def _check_labels(name: SplitName, split: Split, classes: int) -> None:
    targets = split.targets
    if targets.dtype != torch.int64 or targets.ndim != 1:
        raise UserError(
            f"dataset: the labels of the {name} split must be class numbers, int64 [rows], got "
            f"{str(targets.dtype).removeprefix('torch.')} {list(targets.shape)}"
        )
    outside = ((targets < 0) | (targets >= classes)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"dataset: row {row} of the {name} split has label {int(targets[row])}; with "
            f"{classes} class names labels are in [0, {classes - 1}]"
        )


def _absent_classes(splits: Mapping[SplitName, Split], names: Sequence[str]) -> Iterator[str]:
    """A line for each of the two splits that a run looks at in which classes have no row."""
    for split in SPLITS[:2]:
        counts = torch.bincount(splits[split].targets, minlength=len(names))
        absent = [names[number] for number in (counts == 0).nonzero().view(-1).tolist()]
        if absent:
            more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
            yield (
                f"dataset: {len(absent)} of {len(names)} classes have no {split} row: "
                f"{', '.join(absent[:_NAMED])}{more}"
            )


def _counted(
    splits: Mapping[SplitName, Split], identity: Mapping[str, Any], store: Store
) -> dict[str, Any]:
    """The rows in several splits, as plain JSON; for large data from the store."""
    if sum(split.inputs.nbytes for split in splits.values()) < _LARGE_BYTES:
        return count_rows(splits)
    parts = {
        "schema": SCHEMA, "kind": "shared rows", "data": dict(identity),
        "code": source_digest([f"{__name__}.count_rows"]),
    }  # fmt: skip
    entry, _ = store.get_or_build(parts, lambda folder: count_rows(splits))
    return {name: entry.meta[name] for name in ("shared", "conflicts")}


def count_rows(splits: Mapping[SplitName, Split]) -> dict[str, Any]:
    """`Shared` of each split and `Conflicts`, as plain JSON; empty lists where there are none."""
    first: dict[bytes, tuple[SplitName, int, int | None]] = {}  # content -> split, row, label
    shared: dict[str, Shared] = {}
    conflicts: Conflicts | None = None
    for name, split in splits.items():
        labels = _labels(split.targets)
        for row, content in enumerate(_contents(split.inputs)):
            other, other_row, label = first.setdefault(content, (name, row, labels[row]))
            if other != name:
                found = shared.get(name) or Shared(name, 0, len(split), row, other, other_row)
                shared[name] = replace(found, count=found.count + 1)
            if label != labels[row]:
                pair = (f"{name} row {row}", f"{other} row {other_row}")
                known = conflicts or Conflicts(0, *pair)
                conflicts = replace(known, count=known.count + 1)
    return {
        "shared": [asdict(each) for each in shared.values()],
        "conflicts": [asdict(conflicts)] if conflicts else [],
    }


def _labels(targets: Tensor) -> Sequence[int | None]:
    """The class of each row; None where a row has no single class."""
    if targets.ndim == 1 and targets.dtype == torch.int64:
        found: list[int] = targets.tolist()
        return found
    return [None] * len(targets)


def _contents(inputs: Tensor) -> Iterator[bytes]:
    """A digest of each row of `inputs` [N, ...]; 0.0 and -0.0 are the same."""
    for start in range(0, len(inputs), _ROWS_AT_ONCE):
        rows = inputs[start : start + _ROWS_AT_ONCE].cpu()
        rows = rows + 0 if rows.is_floating_point() else rows
        values = rows.contiguous().view(len(rows), -1).view(torch.uint8).numpy()
        for value in values:
            yield hashlib.blake2b(value, digest_size=16).digest()
