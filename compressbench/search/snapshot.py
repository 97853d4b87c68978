"""Reads the stored state of a sweep into plain values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.core.errors import UserError
from compressbench.results.sweep import Constraint, Objective, State, Sweep, Trial
from compressbench.search.result import Result, load

if TYPE_CHECKING:
    from compressbench.search.storage import SweepStorage

DESCRIPTION = "description.json"
STORAGE_VARIABLE = "COMPRESSBENCH_SEARCH_STORAGE"
_STATES: dict[str, State] = {
    "RUNNING": "running", "WAITING": "running", "COMPLETE": "complete", "PRUNED": "pruned",
    "FAIL": "failed",
}  # fmt: skip


def list_sweeps(root: Path = Path("sweeps")) -> list[Path]:
    """The folders of the sweeps in `root`, most recently changed first."""
    found = [path.parent for path in root.glob(f"*/{DESCRIPTION}")]
    return sorted(found, key=lambda p: (p / DESCRIPTION).stat().st_mtime, reverse=True)


def read_sweep(which: str | Path, url: str | None = None) -> Sweep:
    """The sweep in a folder, or of a name in `sweeps/`.

    `url` is that of its storage where that is a database server; without it the environment's
    COMPRESSBENCH_SEARCH_STORAGE is taken. Raises UserError when there is none.
    """
    from compressbench.search.storage import open_storage

    folder = Path(which) if (Path(which) / DESCRIPTION).is_file() else Path("sweeps") / which
    path = folder / DESCRIPTION
    if not path.is_file():
        names = ", ".join(p.name for p in list_sweeps()) or "none"
        raise UserError(f"{which}: no such sweep; sweeps/ has: {names}")
    description = json.loads(path.read_text(encoding="utf-8"))
    stored = description["storage"]
    if stored is not None:
        stored = url or os.environ.get(STORAGE_VARIABLE) or stored
    storage = open_storage(folder.resolve(), stored, description["name"], 1.0)
    try:
        return as_sweep(storage, description, folder.resolve())
    finally:
        storage.engine.dispose()


def as_sweep(storage: SweepStorage, description: Mapping[str, Any], folder: Path) -> Sweep:
    """The current state of an open sweep, with its trials by number."""
    results, repeats = storage.results(), _repeats(storage)
    constraints = tuple(Constraint(**c) for c in description["constraints"])
    trials = []
    for stored in storage.trials():
        settings = {k: round(v, 12) if isinstance(v, float) else v
                    for k, v in stored.params.items()}  # fmt: skip
        row = Trial(stored.number, _STATES[stored.state.name], settings)
        result = results.get(stored.number)
        if result is not None and row.state != "running":
            row = replace(row, state=result.state, violation=result.violation)
            row = _finished(row, result, repeats.get(stored.number, {}), constraints, folder)
        trials.append(row)
    baselines = [r.baseline for _, r in sorted(results.items()) if r.baseline]
    return Sweep(
        name=description["name"],
        folder=str(folder),
        command=description["command"],
        metric=description["metric"],
        objectives=tuple(Objective(**o) for o in description["objectives"]),
        constraints=constraints,
        n_trials=description["n_trials"],
        baseline=_baseline(baselines, repeats),
        trials=trials,
        validation_rows=description["validation_rows"],
    )


def _finished(
    row: Trial,
    result: Result,
    repeats: Mapping[int, Result],
    constraints: tuple[Constraint, ...],
    folder: Path,
) -> Trial:
    figures = dict(result.figures)
    if 0 in repeats:  # the same model, with test data
        figures |= {k: v for k, v in repeats[0].figures.items() if k.startswith("test/")}
    same = "" if result.same_as is None else f"same settings as trial {result.same_as}"
    return replace(
        row,
        figures=figures,
        folder=str(folder / result.folder) if result.folder else "",
        run=result.run,
        seconds=result.seconds,
        ended=result.ended,
        stages=len(result.stages),
        hits=sum(bool(stage["hit"]) for stage in result.stages),
        feasible=result.state == "complete" and result.feasible(constraints),
        reason=result.reason or same,
        repeats=tuple(r.figures for n, r in sorted(repeats.items()) if n and r.figures),
    )


def _repeats(storage: SweepStorage) -> dict[int, dict[int, Result]]:
    """Trial number -> repeat -> result, of the successful repeats."""
    found: dict[int, dict[int, Result]] = {}
    for task, text in storage.leases.results("repeat").items():
        _, number, repeat = task.split("/")
        result = load(text)
        if result.state == "complete":
            found.setdefault(int(number), {})[int(repeat)] = result
    return found


def _baseline(
    first: list[Mapping[str, float]], repeats: Mapping[int, Mapping[int, Result]]
) -> dict[str, float]:
    if not first:
        return {}
    tested = [r[0].baseline for r in repeats.values() if 0 in r]
    test = {k: v for b in tested[:1] for k, v in b.items() if k.startswith("test/")}
    return {**first[0], **test}
