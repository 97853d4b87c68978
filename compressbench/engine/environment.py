"""Machine and library versions, which runs and their figures depend on."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compressbench.core.errors import UserError

LIBRARIES = (
    "torch", "onnx", "onnxruntime", "pytorch-lightning", "hydra-core", "compressbench",
)  # fmt: skip


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
    """The part of the machine that measured times depend on."""
    return {"cpu": _cpu_model(), "cores": os.cpu_count()}


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _git_commit() -> str | None:
    """The commit of the working folder, None outside a repository or without git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
