"""Reads and writes `sweep.json`, the current state of a sweep with all its trials."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from compressbench.core.atomic import write_text_atomic
from compressbench.core.errors import UserError
from compressbench.results.sweep import Constraint, Objective, State, Sweep, Trial

SWEEP_FILE = "sweep.json"
TOPS = ("runs", "multirun", "sweeps")  # folders in the working folder that hold runs and sweeps
SCHEMA_VERSION = 1


def write_sweep(sweep: Sweep, folder: Path) -> Path:
    """Write `sweep.json` atomically and return its path.

    Several processes may write at the same time; the last one wins. Raises UserError if the file
    cannot be written.
    """
    path = folder / SWEEP_FILE
    text = json.dumps(
        {"schema_version": SCHEMA_VERSION, **_plain(sweep)},
        ensure_ascii=False,
        allow_nan=False,
        default=str,
    )
    try:
        write_text_atomic(path, text + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot write {len(text)} bytes: {error.strerror}") from error
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
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("schema_version") != SCHEMA_VERSION:
            raise UserError(f"{path}: written by another version of compressbench")
        return _sweep(stored, folder)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a sweep: {str(error).partition(chr(10))[0]}") from error


def _sweep(stored: dict[str, Any], folder: Path) -> Sweep:
    trials = [
        Trial(**_known(t, Trial) | {"repeats": tuple(t.get("repeats", ()))})
        for t in stored["trials"]
    ]
    for trial in trials:
        if trial.state not in get_args(State):
            raise ValueError(f"trial {trial.number} is {trial.state!r}")
    return Sweep(
        **_known(stored, Sweep)
        | {
            "folder": str(folder.absolute()),
            "objectives": tuple(Objective(**o) for o in stored["objectives"]),
            "constraints": tuple(Constraint(**c) for c in stored["constraints"]),
            "trials": tuple(sorted(trials, key=lambda trial: trial.number)),
        }
    )


def _known(stored: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Without fields that a newer version may have added."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in stored.items() if name in names}
