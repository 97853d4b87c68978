"""Digests of source code: what a stage's result depends on beside its config."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path

from compressbench.core.digests import file_digest
from compressbench.core.errors import UserError

_OURS = __name__.partition(".")[0]
_Asked = tuple[tuple[str, ...], str, tuple[str, ...]]
_known: dict[_Asked, tuple[dict[Path, tuple[int, int] | None], str]] = {}  # this process's answers


def source_digest(targets: Iterable[str]) -> str:
    """SHA-256 (hex) over the sources that the dotted `targets` are made of.

    A target is a module or something in one (`mymodel.Net`). Its closure: its module, the
    packages around it, and all that these import anywhere in their text and that is this
    package's or the user's own. Files count byte by byte, under their module's name, wherever
    they lie; an installed library counts as its record of what was installed. Nothing is
    imported. Imports by a computed name are not seen. Raises UserError for an unknown target.
    """
    asked = (tuple(targets), str(Path.cwd()), tuple(sys.path))
    before, digest = _known.get(asked, ({}, ""))
    if not before or _state(before) != before:
        importlib.invalidate_caches()  # a file may have been written a moment ago
        digest, files = _digest_of(asked[0])
        folders = {path.parent for path in files} | {Path(folder) for folder in sys.path}
        _known[asked] = (_state([*files, *folders]) if files else {}), digest
    return digest


def _state(paths: Iterable[Path]) -> dict[Path, tuple[int, int] | None]:
    """What shows that a file was written, or that one came into a folder."""
    found: dict[Path, tuple[int, int] | None] = {}
    for path in paths:
        try:
            status = path.stat()
            found[path] = (status.st_mtime_ns, status.st_size)
        except OSError:
            found[path] = None
    return found


def _digest_of(targets: Iterable[str]) -> tuple[str, list[Path]]:
    """The digest, and the files that it is made of; none when some are an installed library's."""
    finder = _Finder()
    closure: dict[str, str] = {}
    waiting: list[str] = []
    for target in targets:
        found = finder.modules(target)
        if not found:
            raise UserError(f"{target}: no module {target.partition('.')[0]} on the Python path")
        top = found[0]
        if finder.is_own(top):
            waiting += found
        else:
            closure[top] = _installed_digest(top, finder)
    own = _follow(waiting, finder)
    closure |= {name: file_digest(path) for name, path in own.items()}
    lines = [f"{name} {digest}" for name, digest in sorted(closure.items())]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return digest, list(own.values()) if len(own) == len(closure) else []


def versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions by distribution name; `not installed` where there is none."""
    return {name: _version(name) for name in names}


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _installed_digest(top: str, finder: _Finder) -> str:
    """Of the RECORD (file digests) of the distributions that hold a module; of Python's version
    for what is in none of them: the standard library.
    """
    marks = (f"\n{top}/".encode(), f"\n{top}.py,".encode())
    found = []
    for path in sorted(finder.place(top).parent.glob("*.dist-info/RECORD")):
        record = path.read_bytes()
        if any(mark in b"\n" + record for mark in marks):
            found.append(hashlib.sha256(record).hexdigest())
    return " ".join(found) or platform.python_version()


def _follow(names: Iterable[str], finder: _Finder) -> dict[str, Path]:
    """Module name -> file, of `names` and of what they import, as far as it is own code."""
    closure: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        path = finder.file(name)
        if name in closure or path is None:
            continue
        closure[name] = path
        if path.suffix == ".py":
            package = name if path.stem == "__init__" else name.rpartition(".")[0]
            for imported in _imports(path.read_bytes(), package):
                if finder.is_own(imported):
                    waiting += finder.reached(imported)
    return closure


@lru_cache(maxsize=4096)  # a sweep asks for the same sources with every trial
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Dotted names that a source imports; `m.x` for `from m import x`, also if x is no module."""
    return tuple(_walk(source, package))


def _walk(source: bytes, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # its bytes count; whoever imports it says what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _base(node: ast.ImportFrom, package: str) -> str:
    """The absolute name of the module in `from ..m import x`, written in `package`."""
    if node.level == 0:
        return node.module or ""
    kept = package.split(".")
    outer = ".".join(kept[: len(kept) - node.level + 1])
    return f"{outer}.{node.module}" if node.module else outer


class _Finder:
    """Finds the files of modules without importing them. Good for one digest."""

    def __init__(self) -> None:
        self._top = cache(_top)
        self.file = cache(self._file)
        self._folders = cache(self._look_for_folders)
        self._own = cache(self._is_own)
        self._installed = tuple(_installed_folders())

    def modules(self, dotted: str) -> list[str]:
        """The modules on the way to a dotted name: packages, the module; not what is in it."""
        parts = dotted.split(".")
        found: list[str] = []
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if self.file(name) is None and not self._folders(name):
                break
            found.append(name)
        return found

    def reached(self, imported: str) -> list[str]:
        """`modules`; for `package.*` all modules right below the package as well."""
        package, star, _ = imported.partition(".*")
        below = [
            f"{package}.{path.stem}"
            for folder in (self._folders(package) if star else ())
            for path in sorted(folder.glob("*.py"))
            if path.stem != "__init__"
        ]
        return self.modules(package) + below

    def is_own(self, dotted: str) -> bool:
        """Whether a name leads to this package or outside the interpreter's library folders."""
        return self._own(dotted.partition(".")[0])

    def _is_own(self, top: str) -> bool:
        if top == _OURS:
            return True
        if self.file(top) is None and not self._folders(top):
            return False
        return not any(self.place(top).is_relative_to(folder) for folder in self._installed)

    def place(self, top: str) -> Path:
        """The folder of a top-level package, the file of a top-level module."""
        return next(iter(self._folders(top)), None) or self.file(top) or Path()

    def _file(self, name: str) -> Path | None:
        """The file of a module or the `__init__` of a package; None for a namespace or nothing."""
        parent, _, leaf = name.rpartition(".")
        if not parent:
            return self._top(name)[0]
        endings = ["/__init__.py", *importlib.machinery.EXTENSION_SUFFIXES, ".py"]
        candidates = [Path(f"{f / leaf}{e}") for f in self._folders(parent) for e in endings]
        return next((path for path in candidates if path.is_file()), None)

    def _look_for_folders(self, name: str) -> list[Path]:
        """Where the submodules of a package lie; empty for a plain module."""
        parent, _, leaf = name.rpartition(".")
        if not parent:
            return self._top(name)[1]
        return [f / leaf for f in self._folders(parent) if (f / leaf).is_dir()]


def _top(name: str) -> tuple[Path | None, list[Path]]:
    """File and package folders of a top-level module; (None, []) when it has none."""
    if name in sys.builtin_module_names:  # no file of its own: a place among the library's
        return Path(sysconfig.get_path("stdlib")) / name, []
    try:
        spec = None if name == "__main__" else importlib.util.find_spec(name)
    except (ValueError, ImportError):  # a name like ""
        return None, []
    if spec is None:
        return None, []
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    return file, folders


def _installed_folders() -> Iterator[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    yield from {Path(sysconfig.get_path(name)) for name in names}
    yield from (Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages"))
