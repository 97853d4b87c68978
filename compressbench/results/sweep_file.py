"""Reads and writes `sweep.json`, the current state of a sweep with all its trials."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from compressbench.core.atomic import write_bytes_atomic
from compressbench.core.checked_files import (
    DamagedFileError,
    json_with_digest,
    read_json_with_digest,
)
from compressbench.core.errors import UserError
from compressbench.core.metrics import range_of_figure
from compressbench.results.sweep import Constraint, Direction, Objective, State, Sweep, Trial

SWEEP_FILE = "sweep.json"
TOPS = ("runs", "multirun", "sweeps")  # folders in the working folder that hold runs and sweeps
SCHEMA_VERSION = 1
_TYPES: dict[str, Any] = {
    "settings": dict, "folder": str, "run": str, "reason": str, "feasible": bool,
    "seconds": (int, float), "ended": (int, float),
}  # fmt: skip


def write_sweep(sweep: Sweep, folder: Path) -> Path:
    """Write `sweep.json` atomically and return its path.

    Several processes may write at the same time; the last one wins. Raises UserError if the file
    cannot be written.
    """
    path = folder / SWEEP_FILE
    content = json_with_digest({"schema_version": SCHEMA_VERSION, **_plain(sweep)}, default=str)
    try:
        write_bytes_atomic(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot write {len(content)} bytes: {error.strerror}") from error
    return path


def _plain(sweep: Sweep) -> dict[str, Any]:
    """The sweep as plain values for JSON; `asdict`, which copies all of it, is ten times slower."""
    return {
        **vars(sweep),
        "objectives": [vars(objective) for objective in sweep.objectives],
        "constraints": [vars(constraint) for constraint in sweep.constraints],
        "baseline": _taken(sweep.baseline),
        "trials": [
            {**vars(t), "figures": _taken(t.figures), "repeats": [_taken(r) for r in t.repeats]}
            for t in sweep.trials
        ],
    }


def _taken(figures: Mapping[str, float]) -> dict[str, float]:
    """Without NaN and infinity, which JSON does not have."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep of a folder; `folder` also becomes the sweep's own. Raises UserError."""
    path = folder / SWEEP_FILE
    try:
        stored = read_json_with_digest(path)
        if stored.pop("schema_version") != SCHEMA_VERSION:
            raise UserError(f"{path}: written by another version of compressbench")
        return _sweep(stored, folder)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except DamagedFileError as damage:
        raise UserError(f"{path}: {damage}; run the command of its sweep again") from damage
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a sweep: {str(error).partition(chr(10))[0]}") from error


def _sweep(stored: dict[str, Any], folder: Path) -> Sweep:
    trials = [
        Trial(**_known(t, Trial) | {"repeats": tuple(t.get("repeats", ()))})
        for t in stored["trials"]
    ]
    for trial in trials:
        _check_trial(trial)
    if len({trial.number for trial in trials}) < len(trials):
        raise ValueError("two trials have one number")
    _check_figures("the baseline", stored["baseline"])
    for objective in stored["objectives"]:
        if objective["direction"] not in get_args(Direction):
            raise ValueError(f"{objective['name']} is to {objective['direction']!r}")
    return Sweep(
        **_known(stored, Sweep)
        | {
            "folder": str(folder.absolute()),
            "objectives": tuple(Objective(**o) for o in stored["objectives"]),
            "constraints": tuple(Constraint(**c) for c in stored["constraints"]),
            "trials": tuple(sorted(trials, key=lambda trial: trial.number)),
        }
    )


def _check_trial(trial: Trial) -> None:
    """Raise ValueError for what no trial can have."""
    what = f"trial {trial.number}"
    if trial.state not in get_args(State):
        raise ValueError(f"{what} is {trial.state!r}")
    if type(trial.number) is not int or trial.number < 0:
        raise ValueError(f"{what} has no number from 0")
    for figures in (trial.figures, *trial.repeats):
        _check_figures(what, figures)
    for name, kind in _TYPES.items():
        if not isinstance(getattr(trial, name), kind):
            raise ValueError(f"{name} of {what} is {getattr(trial, name)!r}")


def _check_figures(what: str, figures: Mapping[str, float]) -> None:
    """Raise ValueError for a figure that no measurement gives."""
    for name, value in figures.items():
        low, high = range_of_figure(name)
        least = -sys.float_info.max if low is None else low
        most = sys.float_info.max if high is None else high
        if isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} of {what} is {value}")


def _known(stored: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Without fields that a newer version may have added."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in stored.items() if name in names}
