"""`sweep.json` in the folder of a sweep: all its trials, as they were when it last changed."""

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
TOPS = ("runs", "multirun", "sweeps")  # of the working folder, where runs and sweeps are
SCHEMA_VERSION = 1


def write_sweep(sweep: Sweep, folder: Path) -> Path:
    """Write the sweep so that the file holds the old text or the whole new one, never a part.

    Several processes may write at once; the last one stays. Raises UserError naming path and bytes.
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
        raise UserError(f"{path}: {len(text)} bytes not written: {error.strerror}") from error
    return path


def _plain(sweep: Sweep) -> dict[str, Any]:
    """As JSON takes it; `asdict` copies all of it, which is ten times slower."""
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
    """Without those that are no numbers: they were not taken."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def read_sweep(folder: Path) -> Sweep:
    """The sweep of a folder; its `folder` is where it was found. Raises UserError."""
    path = folder / SWEEP_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("schema_version") != SCHEMA_VERSION:
            raise UserError(f"{path}: of another version of compressbench")
        return _sweep(stored, folder)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: no sweep: {str(error).partition(chr(10))[0]}") from error


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
    """Without what a newer version may have added."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in stored.items() if name in names}
