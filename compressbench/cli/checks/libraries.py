"""Installed versions, against the ranges that this package states of itself."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distributions, metadata, requires, version
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from compressbench import __version__
from compressbench.cli.checks.finding import BROKEN, FINE, LOOK, Finding

_PACKAGE = "compressbench"
_SHOWN = ("torch", "onnxruntime", "numpy", "pytorch-lightning", "mlflow", "hydra-core", "optuna")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml",
             "onnxruntime-training", "ort-nightly")  # install the same files  # fmt: skip


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at Python, at the required libraries, and at those of the extras that are installed."""
    try:
        stated = [Requirement(text) for text in requires(_PACKAGE) or []]
    except PackageNotFoundError:
        advice = "pip install -e . in the checkout"
        yield Finding(_PACKAGE, LOOK, "is not installed, so its ranges are not known", advice)
        return
    yield _package()
    yield _python()
    needed = [r for r in stated if r.marker is None or r.marker.evaluate({"extra": ""})]
    yield from _required(needed)
    yield from _extras([r for r in stated if r not in needed])
    yield from _twice()


def _package() -> Finding:
    installed = version(_PACKAGE)
    if installed == __version__:
        return Finding(_PACKAGE, FINE, __version__)
    found = f"{__version__} runs, but {installed} is installed: another project, or another commit"
    return Finding(_PACKAGE, LOOK, found, "pip install -e . in the checkout that you run")


def _python() -> Finding:
    own = platform.python_version()
    wanted = (metadata(_PACKAGE).get_all("Requires-Python") or [""])[0]
    if not wanted or SpecifierSet(wanted).contains(own, prereleases=True):
        return Finding("python", FINE, own)
    return Finding("python", BROKEN, f"{own}, but {wanted} is needed", f"use Python {wanted}")


def _required(needed: Sequence[Requirement]) -> Iterator[Finding]:
    """One finding for each library that is shown or does not fit, one for all others."""
    others = 0
    for requirement in needed:
        finding = _fit(requirement)
        if finding.mark == FINE and canonicalize_name(requirement.name) not in _SHOWN:
            others += 1
        else:
            yield finding
    yield Finding("other libraries", FINE, f"{others} in their ranges")


def _fit(requirement: Requirement) -> Finding:
    name, wanted = requirement.name, str(requirement.specifier)
    advice = f"pip install '{name}{wanted}'"
    names = _RUNTIMES if name == "onnxruntime" else (name,)
    installed = next(filter(None, map(_version, names)), None)
    if installed is None:
        return Finding(name, BROKEN, f"is not installed, {wanted} is needed", advice)
    if requirement.specifier.contains(installed, prereleases=True):
        return Finding(name, FINE, installed)
    lowest = SpecifierSet(",".join(str(s) for s in requirement.specifier if s.operator == ">="))
    if lowest.contains(installed, prereleases=True):
        found = f"{installed} is newer than what the tests have run with ({wanted})"
        return Finding(name, LOOK, found, advice)
    return Finding(name, BROKEN, f"{installed} is too old, {wanted} is needed", advice)


def _extras(optional: Sequence[Requirement]) -> Iterator[Finding]:
    """Libraries of extras: those that are installed must fit."""
    present = [r for r in optional if r.name != _PACKAGE and _version(r.name) is not None]
    yield from (f for r in present if (f := _fit(r)).mark != FINE)
    names = ", ".join(sorted({r.name for r in present})) or "none"
    yield Finding("optional libraries", FINE, names)


def _twice() -> Iterator[Finding]:
    """Distributions that share a module, or that are in two places."""
    installed = (distribution.metadata["Name"] or "" for distribution in distributions())
    counts: Counter[str] = Counter(map(canonicalize_name, installed))
    both = [name for name in _RUNTIMES if counts[name]]
    if len(both) > 1:
        advice = f"pip uninstall -y {' '.join(both)} && pip install {both[0]}"
        found = f"{' and '.join(both)} install the same files, and the last one wins"
        yield Finding("onnxruntime", BROKEN, found, advice)
    for name in ("torch", "torchvision", "torchaudio", *_SHOWN[1:]):
        if counts[name] > 1:
            found = f"is installed {counts[name]} times, in folders of sys.path"
            advice = f"pip uninstall {name}, until none is left, then pip install {name}"
            yield Finding(name, LOOK, found, advice)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
