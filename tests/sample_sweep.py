"""A hand-made sweep: six trials whose front is easy to see, with and without faults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compressbench.results.sweep import Constraint, Objective, Sweep, Trial

OBJECTIVES = (
    Objective("val/accuracy", "maximize"),
    Objective("size/download_bytes", "minimize"),
)
BASELINE = {
    "val/accuracy": 0.95,
    "test/accuracy": 0.94,
    "size/onnx_bytes": 1_024_000.0,
    "size/download_bytes": 900_000.0,
}
SPARSITY, BITS = "recipe.stages.prune.sparsity", "recipe.stages.quantize.bits"


def make_trial(number, accuracy, download, folder="", **changes):
    figures = {
        "val/accuracy": accuracy,
        "size/download_bytes": float(download),
        "size/onnx_bytes": 2.0 * download,
        "latency/speedup": 1.5,
    }
    trial = Trial(
        number, "complete", {SPARSITY: 0.3 + 0.1 * number, BITS: 8}, figures,
        f"{folder}/trials/{number}" if folder else "", f"s-1/{number}", 10.0,
        ended=1_700_000_000.0 + number, stages=4, hits=2,
    )  # fmt: skip
    return replace(trial, **changes)


def make_trials(folder=""):
    """0, 3, 4 are the front; 1 is dominated, 2 equals 0, 5 is infeasible, 6 failed, 7 runs."""
    return (
        make_trial(0, 0.95, 256_000, folder),
        make_trial(1, 0.90, 300_000, folder),
        make_trial(2, 0.95, 256_000, folder),
        make_trial(3, 0.93, 128_000, folder),
        make_trial(4, 0.80, 64_000, folder),
        make_trial(5, 0.99, 32_000, folder, feasible=False),
        make_trial(6, 0.99, 1_000, folder, state="failed", figures={}, reason="out of memory"),
        make_trial(7, 0.99, 1_000, folder, state="running", figures={}, ended=0.0),
    )


def make_sweep(folder: Path | str = "", **changes):
    sweep = Sweep(
        "digits <b>sweep", str(folder), ["python", "run.py", "-m"], "accuracy", OBJECTIVES,
        (Constraint("latency/speedup", True, 1.0),), 8, BASELINE, make_trials(str(folder)),
    )  # fmt: skip
    return replace(sweep, **changes)
