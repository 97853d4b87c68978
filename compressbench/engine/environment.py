"""Machine and library versions, which runs and their figures depend on."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compressbench.core.errors import UserError

LIBRARIES = (
    "torch", "onnx", "onnxruntime", "pytorch-lightning", "hydra-core", "compressbench",
)  # fmt: skip
KERNELS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS",
           "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "OPENBLAS_CORETYPE", "ON_CPU")  # fmt: skip
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part",
               "CPU variant", "CPU revision")  # fmt: skip
_INSTRUCTIONS = re.compile("avx|amx|fma|f16c|sse4|asimd|sve|sme(?!p)|i8mm|bf16")


def environment() -> dict[str, Any]:
    """Versions, CPU and GPU model, threads, commit; no host name and no user name."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": _git_commit(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def check_torchvision() -> None:
    """Raise UserError if torchvision is installed and cannot be imported.

    compressbench does not use it, but torchmetrics imports it wherever it is installed, and so ends
    a training with a traceback where torchvision was built for another torch: the usual case of
    a CPU build of torch beside the torchvision of the default index.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        import torch

        reason = str(error).partition("\n")[0]
        raise UserError(
            f"torchvision cannot be imported with torch {torch.__version__} ({reason}), but "
            "torchmetrics imports it wherever it is installed; run pip uninstall torchvision, or "
            "install the build that matches this torch"
        ) from error


def machine() -> dict[str, Any]:
    """The part of the machine that measured figures depend on, and which kernels it may use.

    The CPU's name alone says little: many virtual machines have the same. `kernels` are what the
    environment chooses (`ATEN_CPU_CAPABILITY` and its kin, and `ON_CPU` of .ci/on_cpu), which
    changes times and last digits.
    """
    facts = _cpu_facts()
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "model": {name: facts[name] for name in _CPU_FIELDS if name in facts},
        "instructions": _instructions(facts),
        "cores": os.cpu_count(),
        "kernels": {name: os.environ[name].lower() for name in KERNELS if name in os.environ},
    }


def _cpu_model() -> str:
    found = _cpu_facts().get("model name")
    if found is None and sys.platform == "darwin":
        found = _output_of("sysctl", "-n", "machdep.cpu.brand_string")
    return found or platform.processor()


def _instructions(facts: Mapping[str, str]) -> list[str]:
    """The extensions of a CPU that choose kernels: those of the first core."""
    given = facts.get("flags") or facts.get("Features") or ""
    return sorted(i for i in given.split() if _INSTRUCTIONS.match(i))


def _cpu_facts() -> dict[str, str]:
    """Name -> value of the first core in /proc/cpuinfo."""
    first = itertools.takewhile(str.strip, _cpuinfo().splitlines())
    pairs = (line.partition(":") for line in first)
    return {name.strip(): value.strip() for name, _, value in pairs}


@cache
def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace") if path.exists() else ""


def _git_commit() -> str | None:
    """The commit of the working folder, None outside a repository or without git."""
    return _output_of("git", "rev-parse", "HEAD")


def _output_of(*command: str) -> str | None:
    """What a command prints; None where it fails or is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
