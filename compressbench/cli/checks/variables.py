"""Environment variables that weaken a defence, or change results or speed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from compressbench.cli.checks.finding import BROKEN, FINE, LOOK, Finding
from compressbench.engine.environment import KERNELS

_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_TRUE = ("1", "y", "yes", "true")  # as torch reads it
_PURPOSE = {
    "PYTHONPATH": "its folders come before the installed libraries",
    "PYTHONHOME": "Python takes its standard library from there",
    "PYTHONOPTIMIZE": "libraries run without their assertions",
    "LD_PRELOAD": "its code runs in every process",
    "LD_LIBRARY_PATH": "libraries of the system may be replaced by those in its folders",
    "MLFLOW_TRACKING_INSECURE_TLS": "the certificate of the tracking server is not checked",
    "CUBLAS_WORKSPACE_CONFIG": "changes the kernels of a GPU, and so last digits",
    "NVIDIA_TF32_OVERRIDE": "changes the precision of a GPU",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "changes the precision of a GPU",
    "CUDA_LAUNCH_BLOCKING": "makes a GPU slower",
    "KMP_AFFINITY": "binds threads to cores, so that processes may share one",
    "GOMP_CPU_AFFINITY": "binds threads to cores, so that processes may share one",
    "OMP_PROC_BIND": "binds threads to cores, so that processes may share one",
    "OMP_DYNAMIC": "changes the number of threads, and so last digits",
    "KMP_BLOCKTIME": "threads spin while they wait, which slows a shared machine",
}
_KERNELS = "chooses other kernels, which changes times and last digits"


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """One finding per variable that is set, or one that none is."""
    found = list(_set())
    yield from found or [Finding("variables", FINE, "none that changes results or weakens safety")]


def _set() -> Iterator[Finding]:
    if os.environ.get(_UNSAFE, "").lower() in _TRUE:
        found = f"={os.environ[_UNSAFE]} lets checkpoints run code; no command starts with it"
        yield Finding(_UNSAFE, BROKEN, found, f"unset {_UNSAFE}")
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        purpose = "=ACTIVE: threads spin while they wait, which slows a shared machine"
        yield Finding("OMP_WAIT_POLICY", LOOK, purpose, "unset OMP_WAIT_POLICY")
    for name, purpose in {**_PURPOSE, **dict.fromkeys(KERNELS, _KERNELS)}.items():
        if value := os.environ.get(name):
            advice = f"unset {name}, unless you mean it"
            yield Finding(name, LOOK, f"={value}: {purpose}", advice)
