"""What early stopping saves and what it loses: one sweep with it, the same without it.

python experiments/early_stopping/study.py [--trials 80] [--workers 2] [--work FOLDER]
    [-- OVERRIDE ...]

The settings belong to trial numbers, so that both sweeps ask for the same files; the second finds
those that the first made in the store. Prints how many trials were stopped, the seconds of stages
that they were spared, both fronts' hypervolumes, and each member of the full front that the first
sweep had stopped, with how far it is ahead of the front that was left, next to the standard error
of its validation accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from compressbench.results import front as fronts
from compressbench.results.sweep import Sweep, Trial
from compressbench.search.snapshot import list_sweeps, read_sweep

ROOT = Path(__file__).parents[2]
SPACE = [
    "recipe=prune_then_quant",
    "model=mlp",
    "trainer=cpu",
    "trainer.threads=1",
    "recipe.stages.train.epochs=10",
    "recipe.stages.finetune.epochs=1",
    "recipe.stages.prune.sparsity=interval(0.3,0.99)",
    "recipe.stages.quantize.bits=choice(2,3,4,8)",
]
ACCURACY, SIZE = "val/accuracy", "size/download_bytes"


def sweep(folder: Path, store: Path, early: bool, chosen: argparse.Namespace) -> Sweep:
    folder.mkdir(parents=True)
    words = [sys.executable, str(ROOT / "run.py"), "-m", *chosen.overrides, "tracking=none",
             "sampler@search.sampler=random", f"search.early_stop={str(early).lower()}",
             f"search.n_trials={chosen.trials}", f"search.workers={chosen.workers}"]  # fmt: skip
    environment = {**os.environ, "COMPRESSBENCH_STORE": str(store)}
    subprocess.run(words, cwd=folder, env=environment, check=True)
    (where,) = list_sweeps(folder / "sweeps")
    return read_sweep(where)


def stage_seconds(found: Sweep) -> float:
    """Of the stages that ran, exports and measurements included."""
    reports = [Path(t.folder, "report.json") for t in found.trials if t.folder]
    stages = [s for p in reports if p.exists() for s in json.loads(p.read_text())["stages"]]
    return float(sum(stage["seconds"] for stage in stages if not stage["hit"]))


def lead(trial: Trial, others: Sequence[Trial]) -> float:
    """Accuracy of `trial` over the best of the others that are not larger."""
    size = trial.figures[SIZE]
    smaller = [t.figures[ACCURACY] for t in others if t.figures[SIZE] <= size]
    return trial.figures[ACCURACY] - max(smaller, default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("early_stopping"), help="an empty folder")
    parser.add_argument("overrides", nargs="*", default=SPACE)
    chosen = parser.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    work = chosen.work.resolve()
    store = work / "store"
    early = sweep(work / "early", store, True, chosen)
    full = sweep(work / "full", store, False, chosen)
    stopped = {t.number for t in early.trials if t.state == "pruned"}
    print(f"{len(stopped)} of {chosen.trials} trials stopped; {stage_seconds(early):.0f} s of "
          f"stages ran, {stage_seconds(full):.0f} s were spared")  # fmt: skip
    volumes = [fronts.hypervolume(found) or 0.0 for found in (early, full)]
    print(f"hypervolume: {volumes[0]:.2f}, without early stopping {volumes[1]:.2f}")
    members = fronts.members(full)
    kept = [t for t in early.trials if t.state == "complete"]
    print(f"{len(members)} members of the full front, "
          f"{sum(t.number in stopped for t in members)} of them stopped")  # fmt: skip
    for trial in members:
        if trial.number in stopped:
            error = fronts.standard_error(trial, ACCURACY, full)
            print(f"  trial {trial.number}: {trial.figures[ACCURACY]:.4f} at "
                  f"{trial.figures[SIZE]:.0f} B, ahead by {lead(trial, kept):.4f}; "
                  f"standard error {error:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
