"""Hand-made steps of a recipe train -> prune -> quantize, with figures easy to check by head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from compressbench.core.types import Artifact, Coverage, Measurement, Step
from compressbench.results.run_report import RunInfo

NAMES = ("train", "prune", "quantize")
CONFIG = {
    "recipe": {
        "stages": {
            "train": {"_target_": "compressbench.training.train.Train", "epochs": 3},
            "prune": {"criterion": {"_target_": "compressbench.criteria.L1"}, "sparsity": 0.5},
            "quantize": {"bits": 8},
        }
    },
    "tracking": {"url": "https://ann:s3cret@logs.example:5000/mlflow"},
}
_ARTIFACT = Artifact(nn.Identity(), {}, (), frozenset())


def make_step(index: int, onnx: int, download: int, accuracy: float, speedup: float) -> Step:
    figures = {
        "size/onnx_bytes": float(onnx),
        "size/download_bytes": float(download),
        "compute/macs": 40_813_184.0,
        "latency/p50_ms": 2.0 / speedup,
        "latency/speedup": speedup,
        "val/accuracy": accuracy,
        "test/accuracy": accuracy - 0.01,
    }
    history = {"loss": [1.0, 0.5, 0.25]} if index == 0 else {}
    coverage = (Coverage("stem.conv", "Conv2d", 100, 50), Coverage("head", "Linear", 100, 0))
    return Step(
        index, NAMES[index], NAMES[index], f"{index:064x}", index == 0, 1.5, _ARTIFACT,
        Measurement(figures), coverage if index else (), history, (), Path(), index == 0,
        index == 2,
    )  # fmt: skip


def make_steps() -> list[Step]:
    return [
        make_step(0, 1_000_000, 900_000, 0.90, 1.0),
        make_step(1, 1_000_000, 450_000, 0.89, 1.25),
        make_step(2, 250_000, 100_000, 0.88, 2.0),
    ]


def warned(step: Step, *warnings: str) -> Step:
    return replace(step, warnings=warnings)


def make_info(folder: Path) -> RunInfo:
    return RunInfo(
        "prune_then_quant digits", "prune_then_quant", folder, CONFIG, {"python": "3.11"},
        ["python", "run.py", "tracking.url=https://ann:s3cret@logs.example"],
        "2026-01-01T00:00:00+00:00",
    )  # fmt: skip
