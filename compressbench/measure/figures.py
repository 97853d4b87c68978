"""Measures an exported file. Only `val/<metric>_torch` is measured on the PyTorch model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from compressbench.core.activation_quantizers import activations_in_float
from compressbench.core.edits import activation_grid, parameters
from compressbench.core.journal import Journal
from compressbench.core.types import Artifact, Data, Measurement
from compressbench.measure import accuracy, agreement, kernels, latency, macs, size, zeros

_NOWHERE = Journal()
NAMED = 3  # layers in a message
NOTABLY_SLOWER = 0.95  # of the float model's speed; smaller losses are noise on a shared machine


def measure_model(
    artifact: Artifact,
    onnx: Path,
    baseline_onnx: Path,
    data: Data,
    *,
    threads: int = 1,
    journal: Journal = _NOWHERE,
) -> Measurement:
    """Measure size, compute, latency, and quality on the validation split.

    Args:
        artifact: Model that `onnx` was exported from.
        onnx: File to measure.
        baseline_onnx: File of the float model; `latency/speedup` is relative to it.
        data: Dataset; its validation split is used.
        threads: Of ONNX Runtime in the validation run. Latency is always measured with one.
        journal: Keeps the logits; of these files and this model only.

    Raises:
        CheckFailedError: The file and `artifact.model` disagree (see `agreement.check_agreement`).
    """
    counts = kernels.integer_kernels(onnx)
    figures = _sizes(artifact, onnx) | {
        "compute/macs": float(macs.macs(onnx)),
        "compute/integer_kernels": float(sum(counts.get(name, 0) for name in kernels.INTEGER)),
    }
    timed = latency.measure_latency(onnx, baseline_onnx, latency.first_sample(data))
    figures |= {
        "latency/p50_ms": timed.p50_ms,
        "latency/p95_ms": timed.p95_ms,
        "latency/speedup": timed.speedup,
    }
    quality, logits = _quality(artifact, onnx, data, threads, journal)
    warnings = [
        *_chance(logits, data),
        *_slower(timed),
        *_not_integer(artifact, counts),
        *_lost_zeros(artifact, data),
    ]
    return Measurement(figures | quality, tuple(warnings))


def test_figures(
    onnx: Path, data: Data, *, threads: int = 1, journal: Journal = _NOWHERE
) -> dict[str, float]:
    """Measure the metric on the test split; called for the baseline and the final artifact only."""
    metric = data.spec.metric
    logits = accuracy.predict(onnx, data, "test", threads=threads, journal=journal)
    return {f"test/{metric}": accuracy.score(metric, logits, data.split("test").targets)}


def _sizes(artifact: Artifact, onnx: Path) -> dict[str, float]:
    return {
        "size/onnx_bytes": float(size.onnx_bytes(onnx)),
        "size/download_bytes": float(size.download_bytes(onnx)),
        "size/params": float(parameters(artifact.model)),
        "size/nonzero": float(size.nonzero(artifact.model)),
        "size/theoretical_bits": float(size.theoretical_bits(artifact, onnx)),
    }


def _quality(
    artifact: Artifact, onnx: Path, data: Data, threads: int, journal: Journal
) -> tuple[dict[str, float], Tensor]:
    metric, targets = data.spec.metric, data.split("validation").targets
    accuracy.check_metric(metric)
    of_file = accuracy.predict(
        onnx, data, "validation", threads=threads, journal=journal.within("file")
    )
    of_model = accuracy.predict_torch(
        artifact.model, data, "validation", journal=journal.within("model")
    )
    quantized = activation_grid(artifact.edits) is not None
    agreement.check_agreement(of_file, of_model, quantized, _unrounded(artifact, data, journal))
    figures = {
        f"val/{metric}": accuracy.score(metric, of_file, targets),
        f"val/{metric}_torch": accuracy.score(metric, of_model, targets),
        "val/agreement": agreement.agreement(of_file, of_model),
    }
    return figures, of_file


def _unrounded(artifact: Artifact, data: Data, journal: Journal) -> Callable[[], Tensor] | None:
    """A function that computes the validation logits with activations left in float.

    None if activations are not quantized.
    """
    if activation_grid(artifact.edits) is None:
        return None

    def logits() -> Tensor:
        with activations_in_float(artifact.model):
            kept = journal.within("unrounded")
            return accuracy.predict_torch(artifact.model, data, "validation", journal=kept)

    return logits


def _chance(logits: Tensor, data: Data) -> list[str]:
    targets = data.split("validation").targets
    right = float((logits.argmax(1) == targets).double().mean())
    majority = float(torch.bincount(targets).max()) / len(targets)
    chance = max(1.1 / data.spec.num_classes, majority)
    if right > chance:
        return []
    return [f"validation accuracy {right:.4f} is no better than guessing ({chance:.4f})"]


def _slower(timed: latency.Latency) -> list[str]:
    if timed.speedup >= NOTABLY_SLOWER:
        return []
    return [f"slower than the float model: {timed.speedup:.2f} times its speed"]


def _lost_zeros(artifact: Artifact, data: Data) -> list[str]:
    lost = zeros.lost_zeros(artifact.model, data.prepare(data.split("validation").inputs[:1]))
    if not lost:
        return []
    named = ", ".join(lost[:NAMED]) + (f" and {len(lost) - NAMED} more" * (len(lost) > NAMED))
    return [f"pruned weights are not zero in the file: {named} change their weight before using it"]


def _not_integer(artifact: Artifact, counts: dict[str, int]) -> list[str]:
    left = {name: counts[name] for name in kernels.FLOAT if name in counts}
    edit = activation_grid(artifact.edits)
    if edit is None or edit.get("in_float") or not left:  # or in float on purpose
        return []
    named = ", ".join(f"{count} {name}" for name, count in left.items())
    return [f"ONNX Runtime computes in float despite quantized activations: {named}"]
