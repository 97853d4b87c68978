"""Does a hot teacher harm a student of few bits? One small student, five teachers, four widths.

python experiments/low_bit_temperature/study.py --root CIFAR10_FOLDER \
    --checkpoint resnet20.safetensors --validation-rows rows.txt [--processes 2] [--seeds 1]

Each cell is a recipe of train (the teacher's checkpoint), student (a half-width ResNet-8, trained
on the labels once a seed) and its training on a grid, run by the same loop as run.py: what is in
the store already is not computed again, so a stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LAST = "recipe.stages.last"
WIDTHS: dict[str, list[str]] = {
    "float": [f"+stage@{LAST}=finetune"],
    "W3A8, lsq": [f"+stage@{LAST}=qat", f"{LAST}.bits=3"],
    "W3A8, straight through": [
        f"+stage@{LAST}=qat", f"{LAST}.bits=3", f"trained_quantizer@{LAST}.weight=straight_through",
        f"trained_quantizer@{LAST}.activation=straight_through",
    ],
    "W2A8, lsq": [f"+stage@{LAST}=qat", f"{LAST}.bits=2"],
}  # fmt: skip
TEACHERS: dict[str, list[str]] = {
    "none": [],
    **{
        f"T={temperature}": [f"+loss@{LAST}.loss=hinton", f"{LAST}.loss.temperature={temperature}",
                             f"{LAST}.loss.alpha=0.7", f"{LAST}.teacher=train"]
        for temperature in (1, 2, 5, 10)
    },
}  # fmt: skip
Cell = tuple[int, str, str]  # seed, width, teacher


def measure(cell: Cell, epochs: float, where: Sequence[str]) -> dict[str, Any]:
    """Run one recipe; its row: figures of the exported student."""
    from compressbench.config.compose import compose_config
    from compressbench.config.groups import config_folder
    from compressbench.config.run_config import RunConfig
    from compressbench.engine.executor import run
    from compressbench.engine.prepare import prepare

    seed, width, teacher = cell
    student = ["+stage@recipe.stages.student=train", "+model@recipe.stages.student.model=resnet20",
               "recipe.stages.student.model.depth=8", "recipe.stages.student.model.base_width=8",
               f"recipe.stages.student.epochs={epochs}"]  # fmt: skip
    fixed = ["recipe=baseline", "model=resnet20", "dataset=cifar10", "trainer=cpu",
             "trainer.threads=1", "name=study", "tracking=none", f"seed={seed}",
             *student, *WIDTHS[width], *TEACHERS[teacher], f"{LAST}.epochs={epochs / 2}",
             f"{LAST}.optimizer.lr=0.03"]  # fmt: skip
    config = compose_config([*fixed, *where], [config_folder()])
    prepared = prepare(RunConfig.of(config))
    *_, last = run(prepared.plan, prepared.context)
    figures = last.measurement.figures
    return {
        "seed": seed,
        "width": width,
        "teacher": teacher,
        "val_accuracy": figures["val/accuracy"],
        "test_accuracy": figures["test/accuracy"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Test accuracy in percent, the mean over the seeds, as Markdown."""
    lines = ["| teacher | " + " | ".join(WIDTHS) + " |", "|---" * (len(WIDTHS) + 1) + "|"]
    for teacher in TEACHERS:
        cells = []
        for width in WIDTHS:
            found = [100 * float(r["test_accuracy"]) for r in rows
                     if (r["width"], r["teacher"]) == (width, teacher)]  # fmt: skip
            spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.2f}{spread}" if found else "")
        lines.append(f"| {teacher} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Those rows, and what earlier calls have left of other cells, as CSV and as a table."""
    path = folder / "results.csv"
    kept = {_key(row): row for row in csv.DictReader(path.open())} if path.exists() else {}
    merged = list((kept | {_key(row): row for row in rows}).values())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(merged)
    (folder / "results.md").write_text(table(merged), encoding="utf-8")


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("seed", "width", "teacher"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--validation-rows", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--epochs", type=float, default=1.0, help="of the student; half on the grid"
    )
    parser.add_argument("--only", default="", help="part of a width's and a teacher's name")
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    where = [
        f"dataset.root={Path(chosen.root).resolve()}",
        f"dataset.validation_rows={Path(chosen.validation_rows).resolve()}",
        f"model.checkpoint={Path(chosen.checkpoint).resolve()}",
    ]
    everything = itertools.product(range(chosen.seeds), WIDTHS, TEACHERS)
    wanted = [cell for cell in everything if chosen.only in f"{cell[1]} {cell[2]}"]
    found: dict[Cell, dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, mp_context=spawn) as pool:
        waiting = {pool.submit(measure, cell, chosen.epochs, where): cell for cell in wanted}
        for number, done in enumerate(as_completed(waiting), 1):
            row = found[waiting[done]] = done.result()
            print(f"{number}/{len(wanted)} {row['width']}, {row['teacher']}, seed {row['seed']}: "
                  f"{100 * row['test_accuracy']:.2f}", flush=True)  # fmt: skip
            write([found[cell] for cell in wanted if cell in found], chosen.out)
    print(table(list(found.values())))


if __name__ == "__main__":
    main()
