"""What does the float teacher give back after 90 % pruning, and on a grid of 3 bits? Three seeds.

python experiments/distilled_recovery/study.py --root CIFAR10_FOLDER \
    --checkpoint resnet20.safetensors --validation-rows rows.txt [--processes 2] [--seeds 3]

Each cell is a recipe that begins with train (the checkpoint), with or without train as the teacher,
for the same number of epochs, run by the same loop as run.py: what is in the store already is not
computed again, so a stopped study goes on where it was.
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
FINETUNE, QAT = "recipe.stages.finetune", "recipe.stages.qat"
CASES: dict[str, tuple[str, list[str]]] = {  # the stage that learns, and what there is to it
    "90 % pruned, finetuned": (
        FINETUNE,
        [
            "recipe=prune",
            "recipe.stages.prune.sparsity=0.9",
            f"{FINETUNE}.optimizer.lr=0.02",
            "recipe.stages.prune.batchnorm=measure",
        ],
    ),
    "weights of 3 bits, lsq": (
        QAT,
        ["recipe=qat", f"{QAT}.bits=3", f"{QAT}.activation=null", f"{QAT}.optimizer.lr=0.01"],
    ),
}
TAUGHT = (False, True)
Cell = tuple[int, str, bool]  # seed, case, with a teacher


def measure(cell: Cell, epochs: float, where: Sequence[str]) -> dict[str, Any]:
    """Run one recipe; its row: figures of the exported file."""
    from compressbench.config.compose import compose_config
    from compressbench.config.groups import config_folder
    from compressbench.config.run_config import RunConfig
    from compressbench.engine.executor import run
    from compressbench.engine.prepare import prepare

    seed, case, taught = cell
    stage, overrides = CASES[case]
    teacher = [f"+loss@{stage}.loss=hinton", f"{stage}.teacher=train"] if taught else []
    fixed = ["model=resnet20", "dataset=cifar10", "dataset.crop_padding=0", "trainer=cpu",
             "trainer.threads=1", "name=study", "tracking=none", f"seed={seed}",
             f"{stage}.epochs={epochs}"]  # fmt: skip
    config = compose_config([*overrides, *fixed, *teacher, *where], [config_folder()])
    prepared = prepare(RunConfig.of(config))
    *_, last = run(prepared.plan, prepared.context)
    figures = last.measurement.figures
    return {
        "seed": seed,
        "case": case,
        "teacher": taught,
        "val_accuracy": figures["val/accuracy"],
        "test_accuracy": figures["test/accuracy"],
        "download_bytes": int(figures["size/download_bytes"]),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Test accuracy in percent, mean and standard deviation over the seeds, as Markdown."""
    lines = ["| | labels alone | with the teacher | gain, seed by seed |", "|---|---|---|---|"]
    for case in CASES:
        alone, taught = (
            {r["seed"]: 100 * float(r["test_accuracy"]) for r in rows
             if (r["case"], r["teacher"]) == (case, with_teacher)}
            for with_teacher in TAUGHT
        )  # fmt: skip
        gains = ", ".join(f"{taught[s] - alone[s]:+.2f}" for s in sorted(alone) if s in taught)
        lines.append(f"| {case} | {_text(alone)} | {_text(taught)} | {gains} |")
    return "\n".join(lines) + "\n"


def _text(found: Mapping[int, float]) -> str:
    values = list(found.values())
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}" if values else ""


def write(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "results.md").write_text(table(rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--validation-rows", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=0.25)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    where = [
        f"dataset.root={Path(chosen.root).resolve()}",
        f"dataset.validation_rows={Path(chosen.validation_rows).resolve()}",
        f"model.checkpoint={Path(chosen.checkpoint).resolve()}",
    ]
    everything = itertools.product(range(chosen.seeds), CASES, TAUGHT)
    wanted = [cell for cell in everything if chosen.only in cell[1]]
    found: dict[Cell, dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, mp_context=spawn) as pool:
        waiting = {pool.submit(measure, cell, chosen.epochs, where): cell for cell in wanted}
        for number, done in enumerate(as_completed(waiting), 1):
            row = found[waiting[done]] = done.result()
            print(f"{number}/{len(wanted)} {row['case']}, teacher {row['teacher']}, seed "
                  f"{row['seed']}: {100 * row['test_accuracy']:.2f}", flush=True)  # fmt: skip
            write([found[cell] for cell in wanted if cell in found], chosen.out)
    print(table(list(found.values())))


if __name__ == "__main__":
    main()
