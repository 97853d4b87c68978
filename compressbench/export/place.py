"""Finds the line of the user's model that an error or a node of a traced graph comes from."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

STACK = "pkg.torch.onnx.stack_trace"  # metadata of a traced node, outermost call first
_FRAME = re.compile(r'File "(.+?)", line (\d+)')
_TRACERS = ("torch", "onnxscript", "onnx_ir", "compressbench")

Frame = tuple[str, int]  # file and line


def of_error(error: BaseException) -> str:
    """The innermost line of the user's code that an error passed through, as " at FILE:LINE
    (CODE)"; "" if there is none.
    """
    return _shown(_frames(error.__traceback__))


def of_call() -> str:
    """The same for the code that is running."""
    return _shown([(f.filename, f.lineno or 0) for f in traceback.extract_stack()])


def of_node(node: ir.Node) -> str:
    """The same for the code that a node of a traced graph comes from."""
    return of_stack(node.metadata_props.get(STACK, ""))


def of_stack(text: str) -> str:
    """The same for a stack in the form of Python's tracebacks."""
    return _shown([(name, int(line)) for name, line in _FRAME.findall(text)])


def _frames(where: TracebackType | None) -> list[Frame]:
    return [(f.filename, f.lineno or 0) for f in traceback.extract_tb(where)]


def _shown(frames: Iterable[Frame]) -> str:
    own = [frame for frame in frames if _is_users(frame[0])]
    if not own:
        return ""
    name, line = own[-1]
    code = linecache.getline(name, line).strip()
    return f" at {_short(Path(name))}:{line}" + (f" ({code})" if code else "")


def _is_users(name: str) -> bool:
    return not name.startswith("<") and not any(Path(name).is_relative_to(f) for f in _foreign())


@cache
def _foreign() -> tuple[Path, ...]:
    """The folders of Python itself and of the packages that trace."""
    found = [find_spec(name) for name in _TRACERS]
    packages = [Path(str(spec.origin)).parent for spec in found if spec and spec.origin]
    own = [p for p in packages if p.name != "compressbench"]
    ours = [
        p / part
        for p in packages
        if p.name == "compressbench"
        for part in ("core", "engine", "export")
    ]
    return (*own, *ours, *_python())


def _python() -> list[Path]:
    """The files of the standard library, without the installed packages below its folder."""
    return [
        path
        for path in Path(sysconfig.get_path("stdlib")).iterdir()
        if "-packages" not in path.name
    ]


def _short(path: Path) -> str:
    """Relative to the working folder, else the last two parts."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else "/".join(path.parts[-2:])
