"""`compressbench front`: the front of sweeps from what is stored, and which file to ship."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressbench.config.recipe_file import replay_command
from compressbench.core.errors import UserError
from compressbench.core.formatting import parse_bytes
from compressbench.results import front as fronts
from compressbench.results.front_html import write_page
from compressbench.results.front_picture import Picture
from compressbench.results.front_png import write_png
from compressbench.results.front_table import raw_rows
from compressbench.results.ship import Member, Wanted, choose
from compressbench.results.sweep import Sweep
from compressbench.results.sweep_file import SWEEP_FILE, TOPS, read_sweep
from compressbench.results.sweep_terminal import show
from compressbench.results.tables import write_csv

_RECIPE, _MODEL = "recipe.yaml", "model.onnx"


def main(argv: Sequence[str]) -> int:
    """Show the front of sweeps; answer which file to ship."""
    arguments = _parser().parse_args(argv)
    wanted = _wanted(arguments)
    sweeps = [_ready(sweep, arguments) for name in arguments.sweeps for sweep in find(name)]
    _check(sweeps)
    ship = choose(sweeps, wanted) if wanted.asked else None
    show(sweeps)
    _write(sweeps, wanted, ship, arguments)
    if ship is not None:
        _show_ship(ship)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("compressbench front", description=main.__doc__)
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP",
                        help="folder or name of a sweep, or an MLflow experiment")  # fmt: skip
    parser.add_argument("--size", choices=sorted(fronts.SIZES), default=None,
                        help="bytes of the .onnx file or of the download; the sweep's own "
                        "objective when not given")  # fmt: skip
    parser.add_argument("--budget", help="ship the best file of at most so many bytes: 100kB")
    parser.add_argument("--min-accuracy", help="ship the smallest file at least as good: 0.91")
    parser.add_argument("--knee", action="store_true", help="ship the knee of the front")
    parser.add_argument("--floor", type=float, help="of the hypervolume; default: the baseline's "
                        "accuracy - 0.20")  # fmt: skip
    for kind in ("csv", "json", "html", "png"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write it as {kind}")
    return parser


def _wanted(arguments: argparse.Namespace) -> Wanted:
    budget, minimum = arguments.budget, arguments.min_accuracy
    try:
        size = None if budget is None else parse_bytes(budget)
    except ValueError as error:
        raise UserError(f"--budget must be {error}") from None
    try:
        least = None if minimum is None else _share(minimum)
    except ValueError:
        raise UserError(
            f"--min-accuracy must be a number such as 0.91 or 91%, got {minimum!r}"
        ) from None
    return Wanted(size, least, arguments.knee)


def _share(text: str) -> float:
    number = text.strip().removesuffix("%")
    value = float(number) / (100 if number != text.strip() else 1)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


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


def _ready(sweep: Sweep, arguments: argparse.Namespace) -> Sweep:
    if arguments.floor is not None:
        sweep = replace(sweep, floor=arguments.floor)
    if arguments.size is not None:
        sweep = fronts.with_size(sweep, arguments.size)
    return sweep


def _check(sweeps: Sequence[Sweep]) -> None:
    """One picture needs one metric, the same objectives, and something to show."""
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


def _write(
    sweeps: Sequence[Sweep], wanted: Wanted, ship: Member | None, arguments: argparse.Namespace
) -> None:
    rows = [row for sweep in sweeps for row in raw_rows(sweep)]
    chosen = None if ship is None else (ship.sweep.folder, ship.trial.number)
    picture = Picture(sweeps, wanted.budget_bytes, wanted.minimum, chosen)
    writers: dict[str, Any] = {
        "csv": lambda path: write_csv(path, rows),
        "json": lambda path: path.write_text(json.dumps(_report(sweeps, rows), indent=1) + "\n"),
        "html": lambda path: write_page(picture, path),
        "png": lambda path: write_png(picture, path),
    }
    for kind, write in writers.items():
        path = getattr(arguments, kind)
        if path is None:
            continue
        try:
            write(path)
        except OSError as error:
            raise UserError(f"--{kind} {path}: {error.strerror}") from error
        print(f"written: {path}")


def _report(sweeps: Sequence[Sweep], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "sweeps": [
            {
                "name": sweep.name,
                "folder": sweep.folder,
                "front/hypervolume": fronts.hypervolume(sweep),
                "floor": fronts.floor_of(sweep),
                "objectives": {o.name: o.direction for o in sweep.objectives},
                "baseline": dict(sweep.baseline),
                "trials": len(sweep.trials),
            }
            for sweep in sweeps
        ],
        "front": list(rows),
    }


def _show_ship(ship: Member) -> None:
    folder = Path(ship.trial.folder)
    print(f"ship: {ship.text}")
    if not ship.trial.folder or not (folder / _MODEL).is_file():
        print(f"its file is not on this machine: {folder / _MODEL}")
    else:
        print(f"file to ship: {folder / _MODEL}")
    print(f"run it again: {replay_command(folder / _RECIPE)}")
