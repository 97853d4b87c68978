"""Finds sweeps by folder, by name or by MLflow experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressbench.core.errors import UserError
from compressbench.results import front as fronts
from compressbench.results.sweep import Sweep
from compressbench.results.sweep_file import SWEEP_FILE, TOPS, read_sweep


def find(name: str) -> list[Sweep]:
    """The sweep with this folder or name, or all sweeps of the MLflow experiment of this name.

    Raises UserError if there is none, or if several sweeps have the name.
    """
    path = Path(name)
    if path.name == SWEEP_FILE:
        path = path.parent
    if (path / SWEEP_FILE).is_file():
        return [read_sweep(path)]
    stored = [read_sweep(file.parent) for file in _sweep_files()]
    named = [sweep for sweep in stored if sweep.name == name]
    if len(named) > 1:
        folders = ", ".join(sweep.folder for sweep in named)
        raise UserError(f"{len(named)} sweeps are named {name!r}; give a folder: {folders}")
    if named:
        return named
    from compressbench.tracking.mlflow_client import sweep_folders

    logged = [read_sweep(folder) for folder in sweep_folders(name)]
    if not logged:
        known = ", ".join(sorted({sweep.name for sweep in stored}))
        places = ", ".join(f"{top}/" for top in TOPS)
        have = f"; existing sweeps: {known}" if known else f" (searched {places})"
        raise UserError(f"{name}: no such sweep, and no MLflow experiment with sweeps{have}")
    return logged


def _sweep_files() -> list[Path]:
    """The sweep files in the working folder, without searching the many trial folders."""
    patterns = ("*", "*/*", "*/*/*")
    return sorted(
        file for top in TOPS for p in patterns for file in Path(top).glob(f"{p}/{SWEEP_FILE}")
    )


def check_comparable(sweeps: Sequence[Sweep]) -> None:
    """Raise UserError unless all sweeps have the same metric and objectives and a usable trial."""
    first = sweeps[0]
    for sweep in sweeps:
        if (sweep.metric, sweep.objectives) != (first.metric, first.objectives):
            raise UserError(
                f"{first.name} and {sweep.name} have different objectives: "
                f"{_objectives(first)}; {_objectives(sweep)}"
            )
        if not fronts.candidates(sweep):
            states = [trial.state for trial in sweep.trials]
            counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states))) or "none"
            raise UserError(f"{sweep.name}: no complete, feasible trial yet (trials: {counts})")


def _objectives(sweep: Sweep) -> str:
    return ", ".join(f"{o.direction} {o.name}" for o in sweep.objectives)
