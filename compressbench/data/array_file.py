"""Arrays of a user's file, for any task."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.input_files import input_file
from compressbench.core.task import Task
from compressbench.core.types import Split, SplitName
from compressbench.data.arrays import Arrays, Division
from compressbench.data.partition import SPLITS
from compressbench.tasks.choice import check_task
from compressbench.tasks.reconstruction import Reconstruction

_FLOATS, _IDS = (np.float16, np.float32, np.float64), "iu"


def array_file(
    task: Task,
    path: str | None = None,
    names: Sequence[str] | None = None,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    metric: str | None = None,
) -> Arrays:
    """The arrays of an .npz file as a dataset.

    The file has `inputs` and `targets` (one row per sample), which are divided at random, or
    `train_inputs`, `train_targets` and so on for validation and test. Inputs are uint8 images
    [N, C, H, W] or floats [N, ...]; for targets see the task.

    Args:
        task: what a model answers.
        path: the file.
        names: of the classes, or of the numbers that are answered; "0", "1", ... if None.
        validation_fraction: share in (0, 1) of a split that the file does not have.
        test_fraction: share in (0, 1) of a split that the file does not have.
        split_seed: seed of these splits.
        metric: one of the task's; its first if None.
    """
    check_task(task, "dataset.task")
    if names is not None and (not isinstance(names, (list, tuple)) or not names):
        raise UserError(f"dataset.names must be a list of names, got {names!r}")
    if not path or not isinstance(path, str):
        raise UserError("dataset.path is not set: add dataset.path=<file.npz>")
    place = input_file(path, "dataset.path")
    division = Division(validation_fraction, test_fraction, split_seed)
    found = _read(place)
    known = tuple(str(n) for n in names) if names else numbers(found, task)

    def read() -> Mapping[SplitName, Split]:
        return {name: fitted(split, task) for name, split in _read(place).items()}

    return Arrays(
        "arrays", read, known, task, metric, division, options={"names": list(known)}
    )  # fmt: skip


def _read(path: Path) -> Mapping[SplitName, Split]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"dataset.path={path}: not an .npz file of numbers: {error}") from error
    if "train_inputs" not in held:
        return {"train": _split(held, "", path)}
    return {n: _split(held, f"{n}_", path) for n in SPLITS if f"{n}_inputs" in held}


def _split(held: Mapping[str, np.ndarray], prefix: str, path: Path) -> Split:
    for name in (f"{prefix}inputs", f"{prefix}targets"):
        if name not in held:
            raise UserError(
                f"dataset.path={path}: no array {name}; it has {', '.join(held) or 'none'}, and "
                "needs inputs and targets, or train_inputs, train_targets, ..."
            )
    inputs, targets = held[f"{prefix}inputs"], held[f"{prefix}targets"]
    if inputs.ndim < 2 or len(inputs) != len(targets) or len(inputs) == 0:
        raise UserError(
            f"dataset.path={path}: {prefix}inputs {list(inputs.shape)} and {prefix}targets "
            f"{list(targets.shape)} must have one row per sample"
        )
    return Split(_inputs(inputs, f"dataset.path={path}: {prefix}inputs"), _targets(targets, path))


def _inputs(values: np.ndarray, where: str) -> Tensor:
    if values.dtype == np.uint8 and values.ndim == 4:
        return torch.from_numpy(values)
    if values.dtype not in _FLOATS:
        raise UserError(f"{where} must be uint8 images or floats, got {values.dtype}")
    inputs = torch.from_numpy(values.astype(np.float32))
    if not bool(torch.isfinite(inputs).all()):
        raise UserError(f"{where} hold NaN or infinity")
    return inputs


def _targets(values: np.ndarray, path: Path) -> Tensor:
    if values.dtype.kind in _IDS:
        return torch.from_numpy(values.astype(np.int64))
    if values.dtype in _FLOATS:
        return torch.from_numpy(values.astype(np.float32))
    raise UserError(f"dataset.path={path}: targets must be numbers, got {values.dtype}")


def numbers(splits: Mapping[SplitName, Split], task: Task) -> tuple[str, ...]:
    """Names for the classes, or for the numbers, that the targets show."""
    targets = [split.targets for split in splits.values()]
    if task.distribution == "classes":
        count = max(int(t.max()) for t in targets if t.numel()) + 1
    else:
        count = 1 if targets[0].ndim == 1 else targets[0].shape[1]
    return tuple(str(number) for number in range(max(count, 1)))


def fitted(split: Split, task: Task) -> Split:
    """The split with the targets in the form of the task: a column for a single number, floats for
    integers, and for a reconstruction the inputs with them.
    """
    targets = split.targets
    if isinstance(task, Reconstruction) and targets.ndim == 1:
        return Split(split.inputs, task.targets(split.inputs, targets))
    if task.distribution != "classes":
        targets = targets.float()
        targets = targets[:, None] if targets.ndim == 1 else targets
    return Split(split.inputs, targets)
