"""Measures an exported file. Only `val/<metric>_torch` is measured on the PyTorch model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from compressbench.core.activation_quantizers import activations_in_float
from compressbench.core.digests import file_digest
from compressbench.core.edits import activation_grid, parameters
from compressbench.core.external_data import check_self_contained
from compressbench.core.journal import Journal
from compressbench.core.metrics import metric_of
from compressbench.core.types import Artifact, Data, Measurement, SplitName
from compressbench.measure import (
    agreement,
    kernels,
    latency,
    macs,
    predictions,
    rounding,
    size,
    zeros,
)
from compressbench.tasks.choice import task_of

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
        CheckFailedError: The file and `artifact.model` disagree (see `agreement.check_agreement`),
            or the file names another one.
    """
    check_self_contained(onnx)
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
    quality = _quality(artifact, onnx, baseline_onnx, data, threads, journal)
    warnings = [
        *_chance(quality, data),
        *_slower(timed),
        *_not_integer(artifact, counts),
        *_lost_zeros(artifact, data),
    ]
    return Measurement(figures | quality, tuple(warnings), file_digest(onnx))


def test_figures(
    onnx: Path,
    baseline_onnx: Path,
    data: Data,
    *,
    threads: int = 1,
    journal: Journal = _NOWHERE,
) -> dict[str, float]:
    """Measure the metric on the test split; called for the baseline and the final artifact only.

    `baseline_onnx` is the file of the float model.
    """
    metric, task = data.spec.metric, task_of(data.spec)
    answers = predictions.predict(onnx, data, "test", threads=threads, journal=journal)
    targets = _targets(baseline_onnx, data, "test", threads)
    return {f"test/{metric}": task.score(metric, answers, targets)}


def _targets(baseline_onnx: Path, data: Data, split: SplitName, threads: int) -> Tensor:
    """The targets of a split; without any, the answers of the float model."""
    if task_of(data.spec).learns:
        return data.split(split).targets
    return predictions.predict(baseline_onnx, data, split, threads=threads)


def _sizes(artifact: Artifact, onnx: Path) -> dict[str, float]:
    return {
        "size/onnx_bytes": float(size.onnx_bytes(onnx)),
        "size/download_bytes": float(size.download_bytes(onnx)),
        "size/params": float(parameters(artifact.model)),
        "size/nonzero": float(size.nonzero(artifact.model)),
        "size/theoretical_bits": float(size.theoretical_bits(artifact, onnx)),
    }


def _quality(
    artifact: Artifact, onnx: Path, baseline_onnx: Path, data: Data, threads: int, journal: Journal
) -> dict[str, float]:
    metric, task = data.spec.metric, task_of(data.spec)
    targets = _targets(baseline_onnx, data, "validation", threads)
    of_file = predictions.predict(
        onnx, data, "validation", threads=threads, journal=journal.within("file")
    )
    of_model = predictions.predict_torch(
        artifact.model, data, "validation", journal=journal.within("model")
    )
    quantized = activation_grid(artifact.edits) is not None
    otherwise = _unrounded if quantized else _perturbed
    agreement.check_agreement(
        task, of_file, of_model, quantized, lambda: otherwise(artifact.model, data, journal)
    )
    return {
        f"val/{metric}": task.score(metric, of_file, targets),
        f"val/{metric}_torch": task.score(metric, of_model, targets),
        "val/agreement": agreement.agreement(task, of_file, of_model),
    }


def _unrounded(model: nn.Module, data: Data, journal: Journal) -> Sequence[Tensor]:
    """The validation answers with activations left in float."""
    with activations_in_float(model):
        kept = journal.within("unrounded")
        return [predictions.predict_torch(model, data, "validation", journal=kept)]


def _perturbed(model: nn.Module, data: Data, journal: Journal) -> Sequence[Tensor]:
    """The validation answers with other errors of float32, several times."""
    return [
        predictions.predict_torch(
            rounding.perturbed(model, draw),
            data,
            "validation",
            journal=journal.within(f"perturbed{draw}"),
        )
        for draw in range(rounding.DRAWS)
    ]


def _chance(figures: Mapping[str, float], data: Data) -> list[str]:
    metric, targets = data.spec.metric, data.split("validation").targets
    reached = figures[f"val/{metric}"]
    chance = task_of(data.spec).guess(metric, targets, data.spec)
    if chance is None or metric_of(metric).better(reached, chance):
        return []
    return [f"validation {metric} {reached:.4f} is no better than guessing ({chance:.4f})"]


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
