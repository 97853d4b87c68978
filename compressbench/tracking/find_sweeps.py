"""Sweeps by folder, by name or by MLflow experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressbench.core.errors import UserError
from compressbench.results import front as fronts
from compressbench.results.sweep import Sweep
from compressbench.results.sweep_file import SWEEP_FILE, TOPS, read_sweep


def find(name: str) -> list[Sweep]:
    """The sweep of a folder or a name, or all sweeps of an MLflow experiment. Raises UserError."""
    path = Path(name)
    if path.name == SWEEP_FILE:
        path = path.parent
    if (path / SWEEP_FILE).is_file():
        return [read_sweep(path)]
    stored = [read_sweep(file.parent) for file in _sweep_files()]
    named = [sweep for sweep in stored if sweep.name == name]
    if len(named) > 1:
        folders = ", ".join(sweep.folder for sweep in named)
        raise UserError(f"{len(named)} sweeps are named {name!r}, give a folder: {folders}")
    if named:
        return named
    from compressbench.tracking.mlflow_client import sweep_folders

    logged = [read_sweep(folder) for folder in sweep_folders(name)]
    if not logged:
        known = ", ".join(sorted({sweep.name for sweep in stored}))
        have = f"; there are {known}" if known else f" (looked below {', '.join(TOPS)}/)"
        raise UserError(f"{name}: no sweep and no MLflow experiment with sweeps{have}")
    return logged


def _sweep_files() -> list[Path]:
    """Of the working folder; trial folders, which may be thousands, are not entered."""
    patterns = ("*", "*/*", "*/*/*")
    return sorted(
        file for top in TOPS for p in patterns for file in Path(top).glob(f"{p}/{SWEEP_FILE}")
    )


def check_comparable(sweeps: Sequence[Sweep]) -> None:
    """UserError unless the sweeps have one metric, the same objectives, and something to show."""
    first = sweeps[0]
    for sweep in sweeps:
        if (sweep.metric, sweep.objectives) != (first.metric, first.objectives):
            raise UserError(
                f"{first.name} and {sweep.name} have other objectives: {_objectives(first)}; "
                f"{_objectives(sweep)}"
            )
        if not fronts.candidates(sweep):
            states = [trial.state for trial in sweep.trials]
            counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states))) or "none"
            raise UserError(f"{sweep.name}: no complete, feasible trial yet (trials: {counts})")


def _objectives(sweep: Sweep) -> str:
    return ", ".join(f"{o.direction} {o.name}" for o in sweep.objectives)
