"""PyTorch: whether it can be imported, fits its sister libraries and the GPU's driver."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from compressbench.cli.checks.finding import BROKEN, FINE, LOOK, Finding
from compressbench.core.errors import UserError
from compressbench.engine.runtime import resolve

_SISTERS = ("torchvision", "torchaudio")
_DRIVER = Path("/proc/driver/nvidia/version")
_GPU_INDEX = "https://download.pytorch.org/whl/cu130"


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at the build, its sisters, the GPUs, and the config group `trainer`."""
    for name in _SISTERS:
        if importlib.util.find_spec(name) is not None:
            yield _sister(name)
    yield _gpus()
    try:
        runtime = resolve(settings["trainer"])
    except UserError as error:
        yield Finding("trainer", BROKEN, str(error), "correct that setting")
        return
    found = (
        f"{runtime.accelerator}, processes: {runtime.devices}, threads of each: {runtime.threads}"
    )
    yield Finding("trainer", FINE, found)


def _sister(name: str) -> Finding:
    """A library that is built for one torch, and that others import wherever it is installed."""
    installed = _version(name)
    advice = f"pip uninstall {name} (compressbench needs none), or {_matching(name)}"
    try:
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module(name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        found = f"{installed} cannot be imported with torch {torch.__version__}: {reason}"
        return Finding(name, BROKEN, f"{found}; transformers and trainings import it", advice)
    wanted = _wanted_torch(name)
    if wanted is not None and not wanted.specifier.contains(torch.__version__, prereleases=True):
        return Finding(name, LOOK, f"{installed} was built for {wanted}", advice)
    if _build(installed) != _build(torch.__version__):
        found = f"{installed} is of another build than torch {torch.__version__}"
        return Finding(name, LOOK, found, advice)
    return Finding(name, FINE, installed)


def _matching(name: str) -> str:
    """The command that installs the build of `name` for this torch."""
    major, minor = torch.__version__.split(".")[:2]
    series = f"0.{int(minor) + 15}" if name == "torchvision" else f"{major}.{minor}"
    build = _build(torch.__version__)
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install '{name}=={series}.*'{index}"


def _wanted_torch(name: str) -> Requirement | None:
    """The requirement of torch in the metadata of `name`."""
    try:
        stated = [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:
        return None
    return next((r for r in stated if r.name == "torch" and r.marker is None), None)


def _build(number: str) -> str:
    """`cpu` or `cu130`, the label after the plus; "" where a version has none."""
    return number.partition("+")[2]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of no stated version"


def _gpus() -> Finding:
    """The GPUs that torch can use, or why it cannot."""
    build, driver = torch.version.cuda, _driver()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if build is None:
        if driver is None or torch.version.hip is not None:
            return Finding("gpu", FINE, "none, and a build of torch for the CPU")
        advice = f"pip install torch --index-url {_GPU_INDEX}"
        return Finding("gpu", LOOK, f"driver {driver}, but a build of torch for the CPU", advice)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        return _tried(count, f"CUDA {build}, driver {driver or 'unknown'}")
    if driver is None:
        return Finding("gpu", FINE, f"none; torch is built for CUDA {build}")
    if hidden is not None:
        found = f"driver {driver}, but CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU"
        return Finding("gpu", LOOK, found, "unset CUDA_VISIBLE_DEVICES")
    reason = f": {str(caught[0].message).partition(chr(10))[0]}" if caught else ""
    advice = "update the driver, or install a torch for its CUDA (see `nvidia-smi`)"
    found = f"torch for CUDA {build} sees no GPU with driver {driver}{reason}"
    return Finding("gpu", BROKEN, found, advice)


def _tried(count: int, found: str) -> Finding:
    """Compute on each GPU: one that is seen may be too old or too new for this build."""
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    try:
        for number in range(count):
            torch.ones(8, 8, device=f"cuda:{number}").mm(torch.ones(8, 8, device=f"cuda:{number}"))
            torch.cuda.synchronize(number)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        advice = "update the driver, or install a torch built for this GPU; trainer=cpu until then"
        return Finding("gpu", BROKEN, f"{names[number]} does not compute: {reason}", advice)
    return Finding("gpu", FINE, f"{count}: {', '.join(sorted(set(names)))}; {found}")


def _driver() -> str | None:
    """The version of NVIDIA's driver, None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=4, check=False)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is not None and done.returncode == 0 and done.stdout.strip():
        return done.stdout.split()[0]
    text = _DRIVER.read_text() if _DRIVER.exists() else ""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else None
