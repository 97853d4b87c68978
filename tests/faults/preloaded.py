"""What a forked process of tests/faults/forked.py has already, and what it runs."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import pytorch_lightning  # noqa: F401 - with all others, once
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

import compressbench.search.trial  # noqa: F401
from compressbench.cli.main import guard, main
from compressbench.data.digits import Digits
from compressbench.export.onnx import export_onnx  # noqa: F401
from compressbench.export.opsets import NEWEST
from compressbench.export.translate import to_graph
from compressbench.measure.figures import measure_model  # noqa: F401
from compressbench.search.cluster import run_worker
from compressbench.search.command import sweep


def one_table_of_operators() -> None:
    """torch.onnx.export builds its table of operators anew each time, in 0.9 of 2 seconds."""
    build = functools.cache(ONNXRegistry.from_torchlib)

    def copied(*arguments: Any, **keywords: Any) -> ONNXRegistry:
        first, copy = build(*arguments, **keywords), ONNXRegistry()
        copy._opset_version = first.opset_version
        copy.functions = {name: list(found) for name, found in first.functions.items()}
        return copy

    ONNXRegistry.from_torchlib = staticmethod(copied)


one_table_of_operators()
Digits()
to_graph(nn.Linear(2, 2).eval(), torch.zeros(2, 2), NEWEST)  # imports what an export needs


def command(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be `compressbench ARGUMENTS` in `folder`."""
    _become(folder, environment)
    if "-m" in arguments:
        words = [a for a in arguments if a != "-m"]
        sys.exit(guard(lambda: _swept(words)))
    sys.argv = ["compressbench", *arguments]
    main()


def _become(folder: str, environment: dict[str, str]) -> None:
    for name in [n for n in os.environ if n.startswith(("COMPRESSBENCH_", "MLFLOW_"))]:
        del os.environ[name]
    os.environ |= environment
    os.chdir(folder)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _swept(words: list[str]) -> int:
    sweep(words, [], ["-m", *words], launch=_forked_workers)
    return 0


def _forked_workers(count: int, spec: Path) -> None:
    """What a launcher does: run workers somewhere, and return when all have ended."""
    context = multiprocessing.get_context("forkserver")
    group, environment = os.getpgid(0), dict(os.environ)
    workers = [
        context.Process(target=_worker, args=(index, str(spec), group, environment))
        for index in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _worker(index: int, spec: str, group: int, environment: dict[str, str]) -> None:
    os.setpgid(0, group)  # so that it ends with who started it
    _become(str(Path(spec).parent), environment)
    os.chdir(Path(spec).parents[2])
    run_worker(OmegaConf.create({"search": {"worker": {"spec": spec, "index": index}}}))
