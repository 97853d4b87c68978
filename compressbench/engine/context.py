"""What all stages of a run share: store, data, runtime; and the exports a stage may ask for."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compressbench.config.instantiate import instantiate, own_targets
from compressbench.core.artifact import digest as artifact_digest
from compressbench.core.digests import digest
from compressbench.core.distributed import rank, sum_over_ranks
from compressbench.core.journal import Journal
from compressbench.core.types import (
    Artifact,
    Context,
    Data,
    Runtime,
    TimeShare,
)
from compressbench.engine.data_identity import identify
from compressbench.engine.environment import machine
from compressbench.engine.plan import SCHEMA
from compressbench.engine.stage_job import Job
from compressbench.export.opsets import NEWEST
from compressbench.store.entries import Store
from compressbench.store.sources import source_digest, versions

if TYPE_CHECKING:
    import onnx_ir as ir

    from compressbench.export.onnx import Trace


Progress = Callable[[int, int, str], None]
EXPORT_LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
_TRACERS = (
    "compressbench.core.artifact",
    "compressbench.export.traced",
    "compressbench.export.translate",
)


@dataclass(frozen=True)
class RunContext:
    """Shared by all stages of one run. `dataset` is the config that `data` was built from."""

    store: Store
    data: Data
    dataset: Mapping[str, Any]
    runtime: Runtime
    checkpoint_seconds: float = 15.0
    progress: Progress = lambda done, total, text: None
    opset: int = NEWEST  # highest of the target runtime
    test: bool = True  # False: no figure is taken on the test split
    data_notes: tuple[str, ...] = ()  # what to know of the data, shown as warnings

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        return identify(self.dataset, self.data)

    def context(self, job: Job, scratch: Path) -> Context:
        """What the stage of `job` may use; all ranks must call this together."""
        journal = Journal.open(scratch, self.runtime.device)
        return Context(
            data=self.data,
            runtime=self.runtime,
            seed=job.seed,
            folder=scratch,
            build=instantiate,
            progress=self.progress,
            export_bytes=lambda artifact: _exported_bytes(artifact, self, scratch, journal),
            timed_against=lambda artifact: _timed_against(artifact, self, scratch, journal),
            checkpoint_seconds=self.checkpoint_seconds,
            recall=lambda parts, compute: compute(journal.within(digest([json.dumps(parts)]))),
            journal=journal,
        )


def _exported_bytes(
    artifact: Artifact, run_context: RunContext, scratch: Path, journal: Journal
) -> int:
    """Size in bytes of an artifact's ONNX file, which is exported for this and deleted."""
    from compressbench.export.onnx import export_onnx

    scratch.mkdir(parents=True, exist_ok=True)

    def weigh() -> int:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            path = Path(folder) / "model.onnx"
            trace = tracer(artifact, run_context)
            export_onnx(artifact, run_context.data, path, run_context.opset, trace)
            return path.stat().st_size

    return journal.within("bytes").once(artifact_digest(artifact), weigh)


def _timed_against(
    original: Artifact, run_context: RunContext, scratch: Path, journal: Journal
) -> TimeShare:
    """Time of an artifact's file over that of `original`'s: the median over interleaved pairs of
    calls, as the first rank measures it, for all ranks.

    All pairs of one median are measured in one go: after a kill they are measured again. Whoever
    asks twice for one artifact gets two measurements. Those of another machine do not count.
    """
    from compressbench.export.onnx import export_onnx
    from compressbench.measure.latency import first_sample, measure_latency

    data, folder = run_context.data, scratch / "timed"
    folder.mkdir(parents=True, exist_ok=True)
    reference, file = folder / "original.onnx", folder / "model.onnx"
    if rank() == 0:
        export_onnx(original, data, reference, run_context.opset, tracer(original, run_context))
    kept = journal.within("time", json.dumps(machine()), artifact_digest(original))
    asked: Counter[str] = Counter()

    def share(artifact: Artifact) -> float:
        name = artifact_digest(artifact)
        asked[name] += 1
        return kept.once(f"{name} {asked[name]}", lambda: measured(artifact))

    def measured(artifact: Artifact) -> float:
        found = torch.zeros((), dtype=torch.float64, device=run_context.runtime.device)
        if rank() == 0:
            export_onnx(artifact, data, file, run_context.opset, tracer(artifact, run_context))
            found += 1.0 / measure_latency(file, reference, first_sample(data)).speedup
        return float(sum_over_ranks(found))

    return share


def tracer(artifact: Artifact, run_context: RunContext) -> Trace:
    """Take traced graphs from the store: artifacts of one architecture share one, whatever the
    weights.
    """
    from compressbench.export.traced import read_graph, traced_edits, write_graph
    from compressbench.export.translate import to_graph

    def trace(model: torch.nn.Module, example: torch.Tensor, opset: int) -> ir.Model:
        shared = {
            "model": artifact.model_config,
            "edits": traced_edits(artifact.edits),
            "input": {"shape": list(example.shape), "dtype": str(example.dtype)},
            "opset": opset,
            "environment": versions(EXPORT_LIBRARIES[:-1]),
        }
        targets = (*_TRACERS, *own_targets(artifact.model_config))
        parts = parts_of("graph", shared, *targets)

        def write(folder: Path) -> dict[str, Any]:
            write_graph(to_graph(model, example, opset), model, folder / "graph.onnx")
            return {}

        entry, _ = run_context.store.get_or_build(parts, write)
        return read_graph(entry.folder / "graph.onnx", model)

    return trace


def parts_of(kind: str, shared: Mapping[str, Any], *targets: str) -> dict[str, Any]:
    return {**shared, "schema": SCHEMA, "kind": kind, "code": source_digest(sorted(targets))}
