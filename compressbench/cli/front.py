"""`compressbench front`: shows the front of stored sweeps and chooses the file to ship."""

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
from compressbench.core.metrics import metric_of
from compressbench.results import front as fronts
from compressbench.results.front_html import write_page
from compressbench.results.front_picture import Picture
from compressbench.results.front_png import write_png
from compressbench.results.front_table import raw_rows
from compressbench.results.ship import Member, Wanted, check_file, choose
from compressbench.results.sweep import Sweep
from compressbench.results.sweep_terminal import show
from compressbench.results.tables import write_csv
from compressbench.tracking.find_sweeps import check_comparable, find

_RECIPE, _MODEL = "recipe.yaml", "model.onnx"


def main(argv: Sequence[str]) -> int:
    """Show the Pareto front of sweeps and choose the file to ship."""
    arguments = _parser().parse_args(argv)
    wanted = _wanted(arguments)
    sweeps = [_ready(sweep, arguments) for name in arguments.sweeps for sweep in find(name)]
    check_comparable(sweeps)
    _check_direction(arguments, sweeps[0].metric)
    ship = choose(sweeps, wanted) if wanted.asked else None
    show(sweeps)
    _write(sweeps, wanted, ship, arguments)
    if ship is not None:
        _show_ship(ship)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("compressbench front", description=main.__doc__)
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP",
                        help="folder or name of a sweep, or MLflow experiment")  # fmt: skip
    parser.add_argument("--size", choices=sorted(fronts.SIZES), default=None,
                        help="size of the .onnx file or of the download; default: the objective "
                        "of the sweep")  # fmt: skip
    parser.add_argument("--budget", help="ship the best file of at most this size, such as 100kB")
    parser.add_argument("--at-least", "--min-accuracy", dest="at_least", metavar="METRIC",
                        help="ship the smallest file of at least this accuracy (or other metric "
                        "that is better when higher), such as 0.91 or 91%%")  # fmt: skip
    parser.add_argument("--at-most", metavar="METRIC", help="ship the smallest file of at most "
                        "this error (or other metric that is better when lower)")  # fmt: skip
    parser.add_argument("--knee", action="store_true", help="ship the knee of the front")
    parser.add_argument("--floor", type=float, help="metric at which the hypervolume starts to "
                        "count files; default: the baseline's, worse by 0.20 (an error: by "
                        "20 %%)")  # fmt: skip
    for kind in ("csv", "json", "html", "png"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE",
                            help=f"write the front as {kind.upper()}")  # fmt: skip
    return parser


def _wanted(arguments: argparse.Namespace) -> Wanted:
    budget = arguments.budget
    if arguments.at_least is not None and arguments.at_most is not None:
        raise UserError("--at-least and --at-most exclude each other: a metric has one direction")
    try:
        size = None if budget is None else parse_bytes(budget)
    except ValueError as error:
        raise UserError(f"--budget must be {error}") from None
    try:
        least = None if arguments.at_least is None else _share(arguments.at_least)
        most = None if arguments.at_most is None else _share(arguments.at_most)
    except ValueError:
        option, text = ("least", arguments.at_least) if arguments.at_most is None else (
            "most", arguments.at_most)  # fmt: skip
        raise UserError(
            f"--at-{option} must be a number such as 0.91 or 91%, got {text!r}"
        ) from None
    return Wanted(size, most if least is None else least, arguments.knee)


def _check_direction(arguments: argparse.Namespace, metric: str) -> None:
    """Refuse a bound on the wrong side of the metric."""
    higher = metric_of(metric).higher
    if (arguments.at_most if higher else arguments.at_least) is not None:
        wrong, right = ("--at-most", "--at-least") if higher else ("--at-least", "--at-most")
        better = "higher" if higher else "lower"
        raise UserError(f"{wrong}: {metric} is better when {better}; use {right}")


def _share(text: str) -> float:
    number = text.strip().removesuffix("%")
    value = float(number) / (100 if number != text.strip() else 1)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _ready(sweep: Sweep, arguments: argparse.Namespace) -> Sweep:
    if arguments.floor is not None:
        sweep = replace(sweep, floor=arguments.floor)
    if arguments.size is not None:
        sweep = fronts.with_size(sweep, arguments.size)
    return sweep


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
    check_file(ship)
    print(f"ship: {ship.text}")
    if not ship.trial.folder or not (folder / _MODEL).is_file():
        print(f"the file to ship is not on this machine: {folder / _MODEL}")
    else:
        print(f"file to ship: {folder / _MODEL}")
    print(f"run it again: {replay_command(folder / _RECIPE)}")
