"""Computes digests of source code, which a stage's result depends on besides its config."""

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

NOT_INSTALLED = "not installed"
_OURS = __name__.partition(".")[0]
_Asked = tuple[tuple[str, ...], str, tuple[str, ...]]
_known: dict[_Asked, tuple[dict[Path, tuple[int, int] | None], str]] = {}  # cache of this process


def source_digest(targets: Iterable[str]) -> str:
    """SHA-256 (hex) over the import closures of the dotted `targets`.

    A target is a module or something in one (`mymodel.Net`). Its closure consists of its module,
    the packages around it, and every module of this package or of the user that these import
    anywhere in their text. Files are hashed byte by byte under the name of their module, whatever
    their location; a target in an installed library is represented by the RECORD of its
    distribution. Nothing is imported to find this out, so imports by a computed name are missed.
    Raises UserError for an unknown target.
    """
    asked = (tuple(targets), str(Path.cwd()), tuple(sys.path))
    before, digest = _known.get(asked, ({}, ""))
    if not before or _state(before) != before:
        importlib.invalidate_caches()  # to see files written since the last lookup
        digest, files = _digest_of(asked[0])
        folders = {path.parent for path in files} | {Path(folder) for folder in sys.path}
        _known[asked] = (_state([*files, *folders]) if files else {}), digest
    return digest


def _state(paths: Iterable[Path]) -> dict[Path, tuple[int, int] | None]:
    """Time and size of files and folders; changes if a file is written or added to a folder."""
    state: dict[Path, tuple[int, int] | None] = {}
    for path in paths:
        try:
            status = path.stat()
            state[path] = (status.st_mtime_ns, status.st_size)
        except OSError:
            state[path] = None
    return state


def _digest_of(targets: Iterable[str]) -> tuple[str, list[Path]]:
    """The digest and the files it was computed from; no files if a target is in a library."""
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
    """Installed versions by distribution name, or `not installed`."""
    return {name: _version(name) for name in names}


def library_versions(targets: Iterable[str]) -> dict[str, str]:
    """Top-level module -> version, of the libraries that code outside of this package imports.

    That code consists of the import closures of the dotted `targets`. A module of a distribution
    of another name has the digest of the distribution's RECORD.
    """
    finder = _Finder()
    start = [name for target in targets for name in finder.modules(target)]
    found: set[str] = set()
    for name, path in _follow(filter(finder.is_own, start), finder).items():
        if name.partition(".")[0] != _OURS and path.suffix == ".py":
            found |= {imported.partition(".")[0] for imported in _imports(path.read_bytes(), name)}
    libraries = [top for top in sorted(found) if finder.is_library(top)]
    return {top: _library_version(top, finder) for top in libraries}


def _library_version(top: str, finder: _Finder) -> str:
    version = _version(top)
    return version if version != NOT_INSTALLED else _installed_digest(top, finder)


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _installed_digest(top: str, finder: _Finder) -> str:
    """Digest of the RECORD (file digests) of the distributions that contain a module.

    The Python version for modules of no distribution, that is, the standard library.
    """
    marks = (f"\n{top}/".encode(), f"\n{top}.py,".encode())
    found = []
    for path in sorted(finder.place(top).parent.glob("*.dist-info/RECORD")):
        record = path.read_bytes()
        if any(mark in b"\n" + record for mark in marks):
            found.append(hashlib.sha256(record).hexdigest())
    return " ".join(found) or platform.python_version()


def _follow(names: Iterable[str], finder: _Finder) -> dict[str, Path]:
    """Map module names to files, for `names` and the modules of own code that they import."""
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


@lru_cache(maxsize=4096)  # a sweep parses the same sources for every trial
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Dotted names that a source imports; `m.x` for `from m import x`, module or not."""
    return tuple(_walk(source, package))


def _walk(source: bytes, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # its bytes are hashed all the same; importing it reports the error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _base(node: ast.ImportFrom, package: str) -> str:
    """The absolute name of the module in `from ..m import x`, in a module of `package`."""
    if node.level == 0:
        return node.module or ""
    kept = package.split(".")
    outer = ".".join(kept[: len(kept) - node.level + 1])
    return f"{outer}.{node.module}" if node.module else outer


class _Finder:
    """Finds the files of modules without importing them. Caches, so use a new one per digest."""

    def __init__(self) -> None:
        self._top = cache(_top)
        self.file = cache(self._file)
        self._folders = cache(self._look_for_folders)
        self._own = cache(self._is_own)
        self._installed = tuple(_installed_folders())

    def modules(self, dotted: str) -> list[str]:
        """The packages and the module on the path of a dotted name, without attributes."""
        parts = dotted.split(".")
        found: list[str] = []
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if self.file(name) is None and not self._folders(name):
                break
            found.append(name)
        return found

    def reached(self, imported: str) -> list[str]:
        """`modules` of a name; for `package.*` also all modules directly in the package."""
        package, star, _ = imported.partition(".*")
        below = [
            f"{package}.{path.stem}"
            for folder in (self._folders(package) if star else ())
            for path in sorted(folder.glob("*.py"))
            if path.stem != "__init__"
        ]
        return self.modules(package) + below

    def is_own(self, dotted: str) -> bool:
        """Whether a name belongs to this package or is outside the interpreter's libraries."""
        return self._own(dotted.partition(".")[0])

    def _is_own(self, top: str) -> bool:
        if top == _OURS:
            return True
        if self.file(top) is None and not self._folders(top):
            return False
        return not any(self.place(top).is_relative_to(folder) for folder in self._installed)

    def is_library(self, top: str) -> bool:
        """Whether a top-level name is an installed library, not the interpreter's own."""
        if top in sys.stdlib_module_names or self.is_own(top):
            return False
        return self.file(top) is not None or bool(self._folders(top))

    def place(self, top: str) -> Path:
        """The folder of a top-level package, the file of a top-level module."""
        return next(iter(self._folders(top)), None) or self.file(top) or Path()

    def _file(self, name: str) -> Path | None:
        """The file of a module, or the `__init__` of a package; None if there is none."""
        parent, _, leaf = name.rpartition(".")
        if not parent:
            return self._top(name)[0]
        endings = ["/__init__.py", *importlib.machinery.EXTENSION_SUFFIXES, ".py"]
        candidates = [Path(f"{f / leaf}{e}") for f in self._folders(parent) for e in endings]
        return next((path for path in candidates if path.is_file()), None)

    def _look_for_folders(self, name: str) -> list[Path]:
        """The folders with the submodules of a package; empty for a plain module."""
        parent, _, leaf = name.rpartition(".")
        if not parent:
            return self._top(name)[1]
        return [f / leaf for f in self._folders(parent) if (f / leaf).is_dir()]


def _top(name: str) -> tuple[Path | None, list[Path]]:
    """File and package folders of a top-level module; (None, []) if it has none."""
    if name in sys.builtin_module_names:  # built-in modules have no file
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
