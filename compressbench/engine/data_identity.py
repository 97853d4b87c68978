"""What identifies a dataset in content keys: its class, its options, and what it yields.

A manifest alone is not enough: it is written by the class, and two classes of one module may write
the same and prepare their samples differently.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressbench.core.digests import digest, named
from compressbench.core.errors import UserError
from compressbench.core.types import Data, Split, SplitName
from compressbench.store.keys import canonical
from compressbench.tasks.choice import task_of

SAMPLES = 8  # of each split, evenly spaced
PLACE = "a path; its contents count"


def identify(dataset: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """Plain JSON of `data`, which was built from the config `dataset`.

    Options that name existing files or folders by a path do not count, so that data may be moved:
    their contents do, by the manifest and by the samples. The test split is not read. Raises
    UserError for a description or manifest that is not plain JSON.
    """
    found = {
        "target": dataset.get("_target_"),
        "options": {k: _placeless(v) for k, v in dataset.items() if k != "_target_"},
        "spec": {**asdict(replace(data.spec, task=None)), "task": task_of(data.spec).name},
        "manifest": data.manifest(),
        "samples": {
            "train": sample_digests(data, "train"),
            "validation": sample_digests(data, "validation"),
        },
    }
    try:
        canonical(found)
    except TypeError as error:
        raise UserError(
            f"dataset: {error}; spec and manifest must be plain numbers and texts"
        ) from None
    return found


def sample_digests(data: Data, name: SplitName) -> dict[str, str]:
    """SHA-256 of all targets of a split, and of `SAMPLES` inputs as they are and as prepared."""
    split = data.split(name)
    inputs = split.inputs[_rows(len(split))].cpu()
    return {
        "targets": digest(named({"targets": split.targets})),
        "inputs": digest(named({"inputs": inputs})),
        "prepared": _prepared(data, inputs),
    }


def contents_digest(data: Data) -> str:
    """SHA-256 of all inputs and targets that a search sees, before `prepare`: the same on every
    machine.
    """
    splits: dict[SplitName, Split] = {n: data.split(n) for n in ("train", "validation")}
    return digest(
        part
        for name, split in splits.items()
        for part in named({f"{name} inputs": split.inputs, f"{name} targets": split.targets})
    )


def _rows(count: int) -> list[int]:
    last = max(SAMPLES - 1, 1)
    return sorted({index * (count - 1) // last for index in range(SAMPLES)}) if count else []


def _prepared(data: Data, inputs: Tensor) -> str:
    """Digest of the prepared inputs; a constant where two calls differ, which no digest fits."""
    once, again = (digest(named({"prepared": _prepare(data, inputs)})) for _ in range(2))
    return once if once == again else "drawn at random"


def _prepare(data: Data, inputs: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        try:
            return data.prepare(inputs.clone())
        except (RuntimeError, ValueError) as error:
            first = str(error).partition("\n")[0]
            shape = list(inputs.shape)
            raise UserError(
                f"dataset: prepare fails on inputs {shape}, {inputs.dtype}: {first}"
            ) from error


def _placeless(value: Any) -> Any:
    """An option in which paths of existing files and folders are replaced by a constant."""
    if isinstance(value, Mapping):
        return {name: _placeless(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_placeless(inner) for inner in value]
    return PLACE if isinstance(value, str) and _is_place(value) else value


def _is_place(text: str) -> bool:
    """Whether a text with a separator, so not a mere word, is the path of something there."""
    if not any(mark and mark in text for mark in (os.sep, os.altsep, "~")):
        return False
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long; no such user; a null byte
        return False
