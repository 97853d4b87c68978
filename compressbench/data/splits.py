"""Splits that are determined by a seed or by a file of row numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.input_files import MOST_TEXT_BYTES, input_file
from compressbench.core.types import SplitName
from compressbench.core.validation import check_seed, is_number


def stratified(
    targets: Tensor, fractions: Mapping[SplitName, float], seed: int
) -> dict[SplitName, Tensor]:
    """Draw a stratified split: name -> sorted row numbers, where "train" gets the rest.

    Every split gets its fraction of each class, rounded and at least one sample, as long as one
    sample of the class is left for training. `targets` are int64 [N], `fractions` in (0, 1) with
    a sum below 1; raises UserError otherwise.
    """
    _check_fractions(fractions)
    check_seed("dataset.split_seed", seed)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[SplitName, list[Tensor]] = {name: [] for name in ("train", *fractions)}
    for label in sorted(set(targets.tolist())):
        rows = (targets == label).nonzero().view(-1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        start = 0
        for name, fraction in fractions.items():
            wanted = max(1, round(len(rows) * fraction))
            taken = min(wanted, max(0, len(rows) - start - 1))
            parts[name].append(rows[start : start + taken])
            start += taken
        parts["train"].append(rows[start:])
    return {name: torch.cat(rows).sort().values for name, rows in parts.items()}


def at_random(
    count: int, fractions: Mapping[SplitName, float], seed: int
) -> dict[SplitName, Tensor]:
    """Draw a split of `count` samples: name -> sorted row numbers, where "train" gets the rest.

    Every split gets its fraction, rounded. Raises UserError as `stratified`.
    """
    _check_fractions(fractions)
    check_seed("dataset.split_seed", seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    sizes = [round(count * fraction) for fraction in fractions.values()]
    parts = torch.split(order, [*sizes, count - sum(sizes)])
    names: list[SplitName] = [*fractions, "train"]
    return {name: part.sort().values for name, part in zip(names, parts, strict=True)}


def _check_fractions(fractions: Mapping[SplitName, float]) -> None:
    for name, fraction in fractions.items():
        if not is_number(fraction) or not 0.0 < fraction < 1.0:
            raise UserError(f"dataset.{name}_fraction must be in (0, 1), got {fraction!r}")
    if sum(fractions.values()) >= 1.0:
        raise UserError(
            f"dataset: the fractions of {' and '.join(fractions)} must leave images for "
            f"training, got {' + '.join(str(f) for f in fractions.values())}"
        )


def by_rows(path: Path, count: int) -> dict[SplitName, Tensor]:
    """Read validation rows from a text file, one number per line from 0; train is the rest."""
    rows = _read_rows(path)
    seen: set[int] = set()
    for line, row in enumerate(rows, start=1):
        if not 0 <= row < count:
            raise UserError(f"{path} line {line}: row must be in [0, {count - 1}], got {row}")
        if row in seen:
            raise UserError(f"{path} line {line}: row {row} occurs twice")
        seen.add(row)
    if not rows or len(rows) == count:
        left = "no row for validation" if not rows else "no row for training"
        raise UserError(f"{path}: lists {len(rows)} of {count} rows, which leaves {left}")
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.tensor(rows)] = True
    return {"train": (~chosen).nonzero().view(-1), "validation": chosen.nonzero().view(-1)}


def _read_rows(path: Path) -> list[int]:
    try:
        path = input_file(path, "dataset.validation_rows", MOST_TEXT_BYTES)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"dataset.validation_rows={path}: cannot be read: {error}") from error
    rows = []
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            rows.append(int(text))
        except ValueError:
            raise UserError(f"{path} line {line}: must be a row number, got {text!r}") from None
    return rows
