"""Measures stored files again and compares: finds figures that were never measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressbench.config.instantiate import instantiate
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.metrics import metric_of
from compressbench.core.types import Data, SplitName
from compressbench.engine.data_identity import PLACE
from compressbench.engine.environment import machine
from compressbench.measure import macs, predictions, size
from compressbench.store.entries import Entry, Store
from compressbench.tasks.choice import task_of

ELSEWHERE = 0.02  # by which a metric may differ on another CPU
_SPLITS: dict[str, SplitName] = {"measure": "validation", "test": "test"}


def verify_figures(store: Store) -> tuple[int, int, list[str]]:
    """How many measurements were repeated, how many could not be, and what differs, a line each.

    Measurements that differ are set aside. Latency is not measured again: no two are the same.
    """
    repeated = skipped = 0
    wrong: list[str] = []
    for key in list(store.all_keys()):
        entry = store.read(key)
        if entry is None or entry.parts.get("kind") not in _SPLITS:
            continue
        exported = store.read(entry.parts["parents"]["export"])
        data = _data(entry.parts["data"])
        if exported is None or data is None:
            skipped += 1
            continue
        repeated += 1
        if differing := list(_differences(entry, exported, data)):
            store.set_aside(entry, "holds figures that its file does not have")
            wrong += [f"{key[:12]}: {text}" for text in differing]
    return repeated, skipped, wrong


def _data(identity: Mapping[str, Any]) -> Data | None:
    """The dataset of a measurement; None if it cannot be loaded, or has other contents now."""
    options = identity["options"]
    if PLACE in str(options):
        return None
    try:
        data: Data = instantiate({"_target_": identity["target"], **options}, "dataset")
        return data if data.manifest() == identity["manifest"] else None
    except (UserError, CheckFailedError):
        return None


def _differences(entry: Entry, exported: Entry, data: Data) -> Iterator[str]:
    """What is otherwise in the file of `exported` than in the figures of `entry`."""
    file, figures = exported.folder / "model.onnx", entry.meta["figures"]
    if entry.meta["file_sha256"] != exported.manifest["files"]["model.onnx"]["sha256"]:
        yield "was measured on another file"
        return
    found: dict[str, float] = {
        "size/onnx_bytes": size.onnx_bytes(file),
        "size/download_bytes": size.download_bytes(file),
        "compute/macs": macs.macs(file),
    }
    split = _SPLITS[entry.parts["kind"]]
    answers = predictions.predict(file, data, split, threads=entry.parts["runtime"]["threads"])
    metric, folder = data.spec.metric, {"validation": "val", "test": "test"}[split]
    task, unit = task_of(data.spec), 1.0
    if task.learns:  # else the targets are the answers of another file
        value = task.score(metric, answers, data.split(split).targets)
        found[f"{folder}/{metric}"] = value
        unit = 1.0 if metric_of(metric).is_share else abs(value)
    allowed = 0.0 if entry.parts["machine"] == machine() else ELSEWHERE * unit
    for name, value in found.items():
        tolerance = allowed if name.endswith(f"/{metric}") else 0.0
        if name in figures and abs(figures[name] - value) > tolerance:
            yield f"{name} is {figures[name]:g}, measured again {value:g}"
