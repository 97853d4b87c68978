"""The run loop: for each stage, take it from the store or run it; then export and measure."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compressbench.core import artifact as artifacts
from compressbench.core.digests import file_digest
from compressbench.core.errors import CheckFailedError
from compressbench.core.journal import Journal
from compressbench.core.kill_points import reached
from compressbench.core.memory import memory_of
from compressbench.core.types import (
    Artifact,
    Coverage,
    Measurement,
    Step,
)
from compressbench.engine.context import EXPORT_LIBRARIES, RunContext, parts_of, tracer
from compressbench.engine.data_identity import sample_digests
from compressbench.engine.environment import machine
from compressbench.engine.plan import Planned
from compressbench.engine.stage_job import OUTCOME, build_model, execute
from compressbench.results.run_report import growth_warning, shrink_warning
from compressbench.store.entries import Entry, Store
from compressbench.store.keys import content_key
from compressbench.store.sources import versions
from compressbench.tasks.choice import task_of

_BEGINNING = ("schema", "parents", "model", "checkpoint", "data", "code", "environment", "runtime")


def run(plan: Sequence[Planned], run_context: RunContext) -> Iterator[Step]:
    """Yield a Step after each stage. The first stage is the float baseline.

    Figures are taken on test data for the baseline and for the last stage only, or not at all.
    """
    done: dict[str, Step] = {}
    for index, planned in enumerate(plan):
        started = time.monotonic()
        reached("run.before_stage")
        with memory_of(f"recipe.stages.{planned.name}"):
            entry, hit = _stored_or_built(planned, done, run_context)
        artifact = artifacts.load(entry.folder, build_model, planned.key)
        reached("run.stage_stored")
        outcome = json.loads((entry.folder / OUTCOME).read_text())
        baseline = next(iter(done.values()), None)
        with memory_of(f"the file of {planned.name}"):
            files, measurement = _measured(
                artifact,
                baseline,
                run_context,
                planned.timed,
                tested=run_context.test and index in (0, len(plan) - 1),
            )
        step = Step(
            index=index,
            name=planned.name,
            kind=planned.kind,
            key=planned.key,
            hit=hit,
            seconds=time.monotonic() - started,
            artifact=artifact,
            measurement=measurement,
            coverage=tuple(Coverage(**row) for row in outcome["coverage"]),
            history=outcome["history"],
            warnings=(
                *(run_context.data_notes if baseline is None else ()),
                *outcome["warnings"],
                *measurement.warnings,
            ),
            files=files,
            is_baseline=baseline is None,
            is_last=index == len(plan) - 1,
            tables=outcome["tables"],
            notes=tuple(outcome["notes"]),
        )
        done[planned.name] = replace(step, warnings=step.warnings + _on_size(step, done))
        reached("run.stage_measured")
        yield done[planned.name]
        reached("run.stage_reported")


def _on_size(step: Step, done: Mapping[str, Step]) -> tuple[str, ...]:
    """Warnings of a stage that did not shrink the file; `done` are the stages before it."""
    if not done:
        return ()
    first, *_, previous = (next(iter(done.values())), *done.values())
    found = (growth_warning(first, step), shrink_warning(previous, step))
    return tuple(warning for warning in found if warning)


def _stored_or_built(
    planned: Planned, done: Mapping[str, Step], run_context: RunContext
) -> tuple[Entry, bool]:
    """Return the store entry of a stage, and whether it was there before.

    What depends on measured times may come out otherwise when it is computed again under its key:
    then what was made from the one before is no hit.
    """

    def stored() -> tuple[Entry, bool]:
        return run_context.store.get_or_build(
            planned.parts,
            lambda folder: _build(planned, done, run_context, folder),
            on_wait=lambda: run_context.progress(0, 1, "waiting for another process"),
        )

    entry, hit = stored()
    if hit and planned.timed and entry.meta["parents"] != _parents(planned, done):
        run_context.store.set_aside(entry, "was made from another result of the stage before")
        return stored()
    return entry, hit


def _parents(planned: Planned, done: Mapping[str, Step]) -> dict[str, str]:
    """Role -> digest of each parent, for stages whose key does not determine their parents."""
    if not planned.timed:
        return {}
    return {r: artifacts.digest(done[name].artifact) for r, name in planned.parents.items()}


def _build(
    planned: Planned, done: Mapping[str, Step], run_context: RunContext, folder: Path
) -> dict[str, Any]:
    """Run one stage into `folder`, in this process or on several ranks."""
    scratch = run_context.store.scratch(planned.key)
    parents = {role: done[name].artifact for role, name in planned.parents.items()}
    if run_context.runtime.devices > 1:
        from compressbench.engine.launcher import run_on_ranks

        keys = {role: artifact.key for role, artifact in parents.items()}
        run_on_ranks(planned.job, keys, run_context, folder, scratch)
    else:
        context = run_context.context(planned.job, scratch)
        context = replace(context, recall=partial(_recalled, planned, run_context))
        execute(planned.job, parents, context, folder)
    return {"name": planned.name, "parents": _parents(planned, done)}


def _recalled(
    planned: Planned,
    run_context: RunContext,
    parts: Mapping[str, Any],
    compute: Callable[[Journal], Any],
) -> Any:
    """An intermediate result, cached under everything but the stage's own options, so that stages
    with the same starting point share it.
    """
    begun = {name: planned.parts[name] for name in _BEGINNING}
    key = {**begun, **parts, "kind": "costs"}

    def build(folder: Path) -> dict[str, Any]:
        return {"found": compute(_journal(key, run_context))}

    return run_context.store.get_or_build(key, build)[0].meta["found"]


def _journal(parts: Mapping[str, Any], run_context: RunContext) -> Journal:
    """The journal of a result that is being built; it goes when the result is published."""
    return Journal.open(run_context.store.scratch(content_key(parts)), run_context.runtime.device)


def _measured(
    artifact: Artifact, baseline: Step | None, run_context: RunContext, timed: bool, *, tested: bool
) -> tuple[Path, Measurement]:
    """Export an artifact and measure its file next to the float baseline's; `tested` allows reading
    the test split.
    """
    from compressbench.export.onnx import export_onnx
    from compressbench.measure.figures import measure_model, test_figures

    data, store, threads = run_context.data, run_context.store, run_context.runtime.threads
    torch.set_num_threads(threads)
    export = partial(_export, artifact, run_context, timed, export_onnx)
    exported = export()
    file = exported.folder / "model.onnx"
    reference = baseline.files / "model.onnx" if baseline else file
    shared = {
        "parents": {"export": exported.key},
        "data": run_context.data_identity,
        "runtime": asdict(run_context.runtime),
        "environment": versions(["torch", "onnx", "onnxruntime", "zstandard"]),
        "machine": machine(),
    }

    def measure(_: Path) -> dict[str, Any]:
        run_context.progress(0, 1, "measuring the exported file")
        journal = _journal(parts, run_context).within(file_digest(file))
        figures = measure_model(artifact, file, reference, data, threads=threads, journal=journal)
        reached("measure.measured")
        return asdict(figures)

    def test(_: Path) -> dict[str, Any]:
        journal = _journal(asked, run_context).within(file_digest(file))
        figures = test_figures(file, reference, data, threads=threads, journal=journal)
        return {"figures": figures, "file_sha256": file_digest(file)}

    parts = parts_of("measure", shared, "compressbench.measure.figures.measure_model")
    parts["parents"] = {**shared["parents"], "baseline": baseline.key if baseline else None}
    entry = _of_file(store, parts, measure, export)
    reached("measure.stored")
    figures = dict(entry.meta["figures"])
    if tested:
        tested_data = {**run_context.data_identity, "test": sample_digests(data, "test")}
        shared["data"] = tested_data
        asked = parts_of("test", shared, "compressbench.measure.figures.test_figures")
        if not task_of(data.spec).learns:  # figures compare with the float model
            asked["parents"] = parts["parents"]
        figures |= _of_file(store, asked, test, export).meta["figures"]
        reached("measure.tested")
    warnings, sha256 = tuple(entry.meta["warnings"]), entry.meta["file_sha256"]
    return exported.folder, Measurement(figures, warnings, sha256)


def _of_file(
    store: Store,
    parts: Mapping[str, Any],
    measure: Callable[[Path], Any],
    export: Callable[[], Entry],
) -> Entry:
    """The entry of figures that were measured on the file of `export`, and on no other.

    Where they are not, one of the two is not what was stored: both are computed again.
    """
    exported = export()
    entry, hit = store.get_or_build(parts, measure)
    if hit and entry.meta["file_sha256"] != _onnx_sha256(exported):
        store.set_aside(entry, "was measured on another file")
        store.set_aside(exported, "is not the file that was measured")
        exported = export()
        entry, _ = store.get_or_build(parts, measure)
    if entry.meta["file_sha256"] != _onnx_sha256(exported):
        raise CheckFailedError(f"{exported.folder / 'model.onnx'} changed while it was measured")
    return entry


def _onnx_sha256(exported: Entry) -> str:
    return str(exported.manifest["files"]["model.onnx"]["sha256"])


def _export(
    artifact: Artifact, run_context: RunContext, timed: bool, export_onnx: Callable[..., Any]
) -> Entry:
    def export(folder: Path) -> dict[str, Any]:
        run_context.progress(0, 1, "exporting to ONNX")
        reached("export.before")
        file = folder / "model.onnx"
        report: dict[str, Any] = export_onnx(
            artifact, run_context.data, file, run_context.opset, tracer(artifact, run_context)
        )
        reached("export.model_written")
        (folder / "export.json").write_text(json.dumps(report, indent=1) + "\n")
        return {}

    shared = {
        "parents": {
            "model": artifact.key,
            **(
                {"digest": artifacts.digest(artifact)} if timed else {}
            ),  # timed stages: the key does not determine the weights
        },
        "data": run_context.data_identity,
        "opset": run_context.opset,
        "environment": versions(EXPORT_LIBRARIES),
    }
    parts = parts_of("export", shared, "compressbench.export.onnx.export_onnx")
    return run_context.store.get_or_build(parts, export)[0]
