"""Builds `report.json`, the record of a run with the figures of each stage, and tables from it.

Figures that could not be measured are absent. Accuracy and other metrics are in [0, 1], sizes in
bytes, latencies in milliseconds, MACs per sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressbench.core.atomic import write_json_atomic
from compressbench.core.digests import file_digest
from compressbench.core.formatting import (
    MISSING,
    bytes_text,
    count_text,
    metric_text,
    milliseconds_text,
    seconds_text,
    times_text,
)
from compressbench.core.redact import redact
from compressbench.core.types import Step
from compressbench.results.tables import markdown_table, write_csv

SCHEMA_VERSION = 1
NOT_SHRUNK = "download did not shrink"
LARGER = "the file is LARGER than the float model's"
CHANCE = "no better than guessing"
SHIPPED = ("model.onnx", "model.onnx.zst", "model.json", "predict.py", "recipe.yaml")
_QUANTIZES = ("codebook", "quantize")
_SHRINKS = ("codebook", "prune", "quantize")  # prefixes of the kinds of compressing stages
_DOWNLOAD, _FILE = "size/download_bytes", "size/onnx_bytes"

Report = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that are known before it starts; `config` is resolved and plain."""

    name: str
    recipe: str
    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: Sequence[str]
    started: str  # ISO 8601
    metric: str = "accuracy"


def shrink_warning(previous: Step, step: Step) -> str | None:
    """A warning if a compressing stage did not make the download smaller, else None."""
    if not step.kind.startswith(_SHRINKS):
        return None
    before, after = (s.measurement.figures.get(_DOWNLOAD) for s in (previous, step))
    if before is None or after is None or after < before:
        return None
    return (
        f"{step.name}: the {NOT_SHRUNK}: {before:,.0f} bytes after {previous.name}, "
        f"{after:,.0f} after {step.name}"
    )


def growth_warning(baseline: Step, step: Step) -> str | None:
    """A warning if a quantized file is larger than the float baseline's, else None."""
    if not step.kind.startswith(_QUANTIZES):
        return None
    before, after = (s.measurement.figures.get(_FILE) for s in (baseline, step))
    if before is None or after is None or after <= before:
        return None
    return (
        f"{step.name}: {LARGER}: {after:,.0f} bytes, {before:,.0f} after {baseline.name}; what a "
        "grid needs beside the weights (scales, zero points, nodes) outweighs what it saves here"
    )


def build_report(info: RunInfo, steps: Sequence[Step], status: str) -> Report:
    """The report of a run after `steps`; `status` is "finished", "failed" or "killed"."""
    baseline = next((s for s in steps if s.is_baseline), None)
    final = next((s for s in steps if s.is_last), None)
    warnings = [w for s in steps for w in s.warnings]
    report = {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "name": info.name,
        "recipe": info.recipe,
        "metric": info.metric,
        "started": info.started,
        "command": list(info.command),
        "baseline": baseline.name if baseline else None,
        "final": final.name if final else None,
        "in_front": final is not None and not any(map(_keeps_out, warnings)),
        "stages": [_stage(step, info) for step in steps],
        "files": _files(info.folder),
        "config": info.config,
        "environment": info.environment,
    }
    clean: Report = redact(_finite(report))
    return clean


def _keeps_out(warning: str) -> bool:
    return any(text in warning for text in (NOT_SHRUNK, LARGER, CHANCE))


def _stage(step: Step, info: RunInfo) -> dict[str, Any]:
    return {
        "index": step.index,
        "name": step.name,
        "kind": step.kind,
        "key": step.key,
        "hit": step.hit,
        "seconds": round(step.seconds, 3),
        "settings": info.config["recipe"]["stages"][step.name],
        "figures": dict(step.measurement.figures),
        "file_sha256": step.measurement.file_sha256,
        "coverage": [asdict(row) for row in step.coverage],
        "history": {name: list(values) for name, values in step.history.items()},
        "warnings": list(step.warnings),
        "notes": list(step.notes),
        "tables": {name: list(rows) for name, rows in step.tables.items()},
        "layers": _layers(step.files),
    }


def _layers(files: Path) -> list[dict[str, Any]]:
    """The export's row for each layer: bits, storage, granularity, kernel, reason."""
    path = files / "export.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["layers"] if path.is_file() else []
    return rows


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of the files that ship and of the files of the artifact."""
    artifact = sorted(f"artifact/{p.name}" for p in folder.glob("artifact/*") if p.is_file())
    files: dict[str, dict[str, Any]] = {}
    for name in (*SHIPPED, *artifact):
        if (folder / name).is_file():
            path = folder / name
            files[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    return files


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def comparison_rows(report: Report) -> list[Row]:
    """One row per stage with unrounded figures, None for those that were not measured.

    `*_smaller` are the baseline's bytes over this stage's; `faster` is the baseline's latency over
    this stage's, measured in interleaved pairs. `test` is given for the baseline and final stage.
    """
    stages = report["stages"]
    baseline = [s["figures"] for s in stages if s["name"] == report["baseline"]]
    first = baseline[0] if baseline else {}
    return [_row(stage, first, report) for stage in stages]


def _row(stage: Mapping[str, Any], first: Mapping[str, Any], report: Report) -> Row:
    figures, metric = stage["figures"], report["metric"]
    tested = stage["name"] in (report["baseline"], report["final"])
    return {
        "stage": stage["name"],
        "val": figures.get(f"val/{metric}"),
        "test": figures.get(f"test/{metric}") if tested else None,
        "onnx_bytes": figures.get("size/onnx_bytes"),
        "onnx_smaller": _ratio(first, figures, "size/onnx_bytes"),
        "download_bytes": figures.get(_DOWNLOAD),
        "download_smaller": _ratio(first, figures, _DOWNLOAD),
        "macs": figures.get("compute/macs"),
        "latency_p50_ms": figures.get("latency/p50_ms"),
        "faster": figures.get("latency/speedup"),
        "seconds": stage["seconds"],
        "store": "hit" if stage["hit"] else "miss",
    }


def _ratio(first: Mapping[str, Any], figures: Mapping[str, Any], name: str) -> float | None:
    before, after = first.get(name), figures.get(name)
    return before / after if before and after else None


def table(report: Report) -> list[dict[str, str]]:
    """The comparison as text, one row per stage, heading -> text."""
    metric = report["metric"]
    return [
        {
            "stage": row["stage"],
            f"val {metric}": metric_text(row["val"], metric),
            f"test {metric}": metric_text(row["test"], metric),
            "onnx": bytes_text(row["onnx_bytes"]),
            "onnx smaller": times_text(row["onnx_smaller"]),
            "download": bytes_text(row["download_bytes"]),
            "download smaller": times_text(row["download_smaller"]),
            "MACs": count_text(row["macs"]),
            "latency p50": milliseconds_text(row["latency_p50_ms"]),
            "times faster": times_text(row["faster"]),
            "time": seconds_text(row["seconds"]),
            "store": row["store"],
        }
        for row in comparison_rows(report)
    ]


def headline(report: Report) -> str:
    """One line that compares the final file with the baseline."""
    rows = {row["stage"]: row for row in table(report)}
    if report["final"] is None or report["baseline"] is None:
        return f"{report['recipe']}: {report['status']} after {len(rows)} stages"
    first, last = rows[report["baseline"]], rows[report["final"]]
    metric = report["metric"]
    return (
        f"{report['recipe']}: download {last['download']} ({last['download smaller']} smaller), "
        f"onnx {last['onnx']} ({last['onnx smaller']} smaller), {last['times faster']} as fast, "
        f"test {metric} {last[f'test {metric}']} (baseline {first[f'test {metric}']})"
    )


def markdown(report: Report) -> str:
    """The note of a run in MLflow: the table, an explanation of its terms, and the warnings."""
    rows = table(report)
    lines = [headline(report), ""]  # MLflow shows only the first lines until expanded
    lines += markdown_table(rows)
    lines += [
        "",
        "*onnx*: the file that ONNX Runtime loads; *download*: the same, compressed with zstd 19. "
        f"*smaller*, *faster*: relative to {report['baseline']}. Metrics are those of the exported "
        f"file; test data are used for the first and the last stage only ({MISSING}: not "
        "measured). Charts and files are under *Artifacts*.",
    ]
    lines += [f"- ⚠ {w}" for stage in report["stages"] for w in stage["warnings"]]
    return "\n".join(lines) + "\n"


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Write `stages.csv`, `stages.json`, and each table of a stage as STAGE_TABLE.csv."""
    rows = comparison_rows(report)
    write_json_atomic(folder / "stages.json", rows)
    tables = {f"{s['name']}_{name}": t for s in report["stages"] for name, t in s["tables"].items()}
    paths = [write_csv(folder / f"{n.replace('/', '_')}.csv", t) for n, t in tables.items()]
    return [write_csv(folder / "stages.csv", rows), folder / "stages.json", *paths]
