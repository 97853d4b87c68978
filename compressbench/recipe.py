"""The run loop: for each stage, take it from the store or run it; then export and measure."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compressbench import artifact as artifacts
from compressbench.collectives import rank, sum_over_ranks
from compressbench.core import (
    Artifact,
    Context,
    Coverage,
    Data,
    Measurement,
    Runtime,
    Step,
    TimeShare,
)
from compressbench.execute import OUTCOME, Job, build_model, execute
from compressbench.export.opsets import NEWEST
from compressbench.plan import SCHEMA, Planned
from compressbench.report import shrink_warning
from compressbench.store.entries import Entry, Store
from compressbench.store.sources import source_digest, versions
from compressbench.targets import build, own_targets

if TYPE_CHECKING:
    import onnx_ir as ir

    from compressbench.export.onnx import Trace

Progress = Callable[[int, int, str], None]
_TRACERS = (
    "compressbench.artifact",
    "compressbench.export.traced",
    "compressbench.export.translate",
)
_BEGINNING = ("schema", "parents", "model", "checkpoint", "data", "code", "environment", "runtime")
_EXPORTERS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class Workshop:
    """What the stages of one run share. `dataset` is the config that `data` was built from."""

    store: Store
    data: Data
    dataset: Mapping[str, Any]
    runtime: Runtime
    checkpoint_seconds: float = 15.0
    progress: Progress = lambda done, total, text: None
    opset: int = NEWEST  # highest of the target runtime
    test: bool = True  # false: test data are not read at all

    def context(self, job: Job, scratch: Path) -> Context:
        return Context(
            data=self.data,
            runtime=self.runtime,
            seed=job.seed,
            folder=scratch,
            build=build,
            progress=self.progress,
            export_bytes=lambda artifact: _exported_bytes(artifact, self, scratch),
            timed_against=lambda artifact: _timed_against(artifact, self, scratch),
            checkpoint_seconds=self.checkpoint_seconds,
        )


def _exported_bytes(artifact: Artifact, workshop: Workshop, scratch: Path) -> int:
    """Bytes of the ONNX file of an artifact, which is written for this and removed."""
    from compressbench.export.onnx import export_onnx

    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(artifact, workshop.data, path, workshop.opset, _tracer(artifact, workshop))
        return path.stat().st_size


def _timed_against(original: Artifact, workshop: Workshop, scratch: Path) -> TimeShare:
    """Time of an artifact's file over that of `original`'s: the median over interleaved pairs of
    calls, as the first rank measures it, for all ranks.
    """
    from compressbench.export.onnx import export_onnx
    from compressbench.measure.latency import first_sample, measure_latency

    data, folder = workshop.data, scratch / "timed"
    folder.mkdir(parents=True, exist_ok=True)
    reference, file = folder / "original.onnx", folder / "model.onnx"
    if rank() == 0:
        export_onnx(original, data, reference, workshop.opset, _tracer(original, workshop))

    def share(artifact: Artifact) -> float:
        found = torch.zeros((), dtype=torch.float64, device=workshop.runtime.device)
        if rank() == 0:
            export_onnx(artifact, data, file, workshop.opset, _tracer(artifact, workshop))
            found += 1.0 / measure_latency(file, reference, first_sample(data)).speedup
        return float(sum_over_ranks(found))

    return share


def run(plan: Sequence[Planned], workshop: Workshop) -> Iterator[Step]:
    """Yield a Step after each stage. The first stage is the float baseline.

    Test data are read for the baseline and for the last stage only, or not at all.
    """
    done: dict[str, Step] = {}
    for index, planned in enumerate(plan):
        started = time.monotonic()
        entry, hit = _stored_or_built(planned, done, workshop)
        artifact = artifacts.load(entry.folder, build_model, planned.key)
        outcome = json.loads((entry.folder / OUTCOME).read_text())
        baseline = next(iter(done.values()), None)
        files, measurement = _measured(
            artifact,
            baseline,
            workshop,
            planned.timed,
            test=workshop.test and index in (0, len(plan) - 1),
        )
        previous = next(reversed(done.values()), None)
        step = Step(
            index, planned.name, planned.kind, planned.key, hit, time.monotonic() - started,
            artifact, measurement,
            tuple(Coverage(**row) for row in outcome["coverage"]),
            outcome["history"],
            tuple(outcome["warnings"]) + measurement.warnings,
            files, baseline is None, index == len(plan) - 1, outcome["tables"],
            tuple(outcome["notes"]),
        )  # fmt: skip
        warning = shrink_warning(previous, step) if previous else None
        done[planned.name] = replace(step, warnings=step.warnings + ((warning,) if warning else ()))
        yield done[planned.name]


def _stored_or_built(
    planned: Planned, done: Mapping[str, Step], workshop: Workshop
) -> tuple[Entry, bool]:
    """The entry of a stage, and whether it was there.

    What depends on measured times may come out otherwise when it is computed again under its key:
    then what was made from the one before is no hit.
    """

    def stored() -> tuple[Entry, bool]:
        return workshop.store.get_or_build(
            planned.parts,
            lambda folder: _build(planned, done, workshop, folder),
            on_wait=lambda: workshop.progress(0, 1, "waiting for another process"),
        )

    entry, hit = stored()
    if hit and planned.timed and entry.meta["parents"] != _parents(planned, done):
        workshop.store.set_aside(entry, "was made from another result of the stage before")
        return stored()
    return entry, hit


def _parents(planned: Planned, done: Mapping[str, Step]) -> dict[str, str]:
    """Role -> digest of what a stage starts from, where its key does not say that."""
    if not planned.timed:
        return {}
    return {r: artifacts.digest(done[name].artifact) for r, name in planned.parents.items()}


def _build(
    planned: Planned, done: Mapping[str, Step], workshop: Workshop, folder: Path
) -> dict[str, Any]:
    """Run one stage into `folder`, in this process or on several ranks."""
    scratch = workshop.store.scratch(planned.key)
    parents = {role: done[name].artifact for role, name in planned.parents.items()}
    if workshop.runtime.devices > 1:
        from compressbench.ranks import run_on_ranks

        keys = {role: artifact.key for role, artifact in parents.items()}
        run_on_ranks(planned.job, keys, workshop, folder, scratch)
    else:
        context = workshop.context(planned.job, scratch)
        context = replace(context, recall=partial(_recalled, planned, workshop))
        execute(planned.job, parents, context, folder)
    return {"name": planned.name, "parents": _parents(planned, done)}


def _recalled(
    planned: Planned, workshop: Workshop, parts: Mapping[str, Any], compute: Callable[[], Any]
) -> Any:
    """A result on the way of a stage, shared by stages that begin alike, whatever their options."""
    begun = {name: planned.parts[name] for name in _BEGINNING}
    key = {**begun, **parts, "kind": "costs"}
    return workshop.store.get_or_build(key, lambda _: {"found": compute()})[0].meta["found"]


def _measured(
    artifact: Artifact, baseline: Step | None, workshop: Workshop, timed: bool, *, test: bool
) -> tuple[Path, Measurement]:
    """Export, measure the file beside the float baseline's, and read test data where allowed."""
    from compressbench.export.onnx import export_onnx
    from compressbench.measure.measure import measure_model, test_figures

    data, store, threads = workshop.data, workshop.store, workshop.runtime.threads
    torch.set_num_threads(threads)
    exported = _export(artifact, workshop, timed, export_onnx)
    file = exported.folder / "model.onnx"
    reference = baseline.files / "model.onnx" if baseline else file
    shared = {
        "parents": {"export": exported.key},
        "data": data.manifest(),
        "runtime": asdict(workshop.runtime),
        "environment": {**versions(["torch", "onnx", "onnxruntime", "zstandard"]), **_machine()},
    }

    def measure(folder: Path) -> dict[str, Any]:
        workshop.progress(0, 1, "measuring the exported file")
        return asdict(measure_model(artifact, file, reference, data, threads=threads))

    parts = _parts("measure", shared, "compressbench.measure.measure.measure_model")
    parts["parents"] = {**shared["parents"], "baseline": baseline.key if baseline else None}
    entry, _ = store.get_or_build(parts, measure)
    figures = dict(entry.meta["figures"])
    if test:
        parts = _parts("test", shared, "compressbench.measure.measure.test_figures")
        tested, _ = store.get_or_build(
            parts, lambda folder: test_figures(file, data, threads=threads)
        )
        figures |= tested.meta
    return exported.folder, Measurement(figures, tuple(entry.meta["warnings"]))


def _export(
    artifact: Artifact, workshop: Workshop, timed: bool, export_onnx: Callable[..., Any]
) -> Entry:
    def export(folder: Path) -> dict[str, Any]:
        workshop.progress(0, 1, "exporting to ONNX")
        file = folder / "model.onnx"
        report: dict[str, Any] = export_onnx(
            artifact, workshop.data, file, workshop.opset, _tracer(artifact, workshop)
        )
        (folder / "export.json").write_text(json.dumps(report, indent=1) + "\n")
        return {}

    shared = {
        "parents": {
            "model": artifact.key,
            **({"digest": artifacts.digest(artifact)} if timed else {}),  # the key is not enough
        },
        "data": asdict(workshop.data.spec),
        "opset": workshop.opset,
        "environment": versions(_EXPORTERS),
    }
    parts = _parts("export", shared, "compressbench.export.onnx.export_onnx")
    return workshop.store.get_or_build(parts, export)[0]


def _tracer(artifact: Artifact, workshop: Workshop) -> Trace:
    """Graphs from the store: artifacts of one architecture share theirs, whatever their weights."""
    from compressbench.export.traced import read_graph, traced_edits, write_graph
    from compressbench.export.translate import to_graph

    def trace(model: torch.nn.Module, example: torch.Tensor, opset: int) -> ir.Model:
        shared = {
            "model": artifact.model_config,
            "edits": traced_edits(artifact.edits),
            "input": {"shape": list(example.shape), "dtype": str(example.dtype)},
            "opset": opset,
            "environment": versions(_EXPORTERS[:-1]),
        }
        needed = [
            f"compressbench.{name}" for name in ("artifact", "export.traced", "export.translate")
        ]
        parts = _parts("graph", shared, *needed, *own_targets(artifact.model_config))

        def write(folder: Path) -> dict[str, Any]:
            write_graph(to_graph(model, example, opset), model, folder / "graph.onnx")
            return {}

        entry, _ = workshop.store.get_or_build(parts, write)
        return read_graph(entry.folder / "graph.onnx", model)

    return trace


def _parts(kind: str, shared: Mapping[str, Any], *targets: str) -> dict[str, Any]:
    return {**shared, "schema": SCHEMA, "kind": kind, "code": source_digest(sorted(targets))}


def _machine() -> dict[str, str]:
    """A latency holds for the machine it was taken on."""
    return {"machine": f"{platform.machine()} {platform.processor()} {os.cpu_count()} cores"}
