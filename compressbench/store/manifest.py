"""Writes and verifies manifests: the inputs of an entry, its results, a digest of every file."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from compressbench.core.digests import digest, file_digest
from compressbench.core.errors import CheckFailedError
from compressbench.core.redact import redact

MANIFEST = "manifest.json"
_SCHEMA = 1
_FIELDS = {"schema", "key", "parts", "meta", "seconds", "created", "files", "sha256"}
Fingerprint = tuple[tuple[str, int, int, int], ...]


class DamagedError(Exception):
    """An entry is not as it was stored; the text says what has changed."""


def file_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """`{name: {"size", "sha256"}}` of every file in a folder tree; names are relative, with `/`."""
    return {
        path.relative_to(folder).as_posix(): {
            "size": path.lstat().st_size,
            "sha256": _file_digest(path),
        }
        for path in regular_files(folder)
    }


def regular_files(folder: Path) -> Iterator[Path]:
    """The files in a folder tree. Raises CheckFailedError for links and other special files."""
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            yield path
        elif not stat.S_ISDIR(mode):
            raise CheckFailedError(
                f"{path.relative_to(folder)} is not a regular file and cannot be stored"
            )


def compose(
    key: str, parts: Mapping[str, Any], meta: Mapping[str, Any], seconds: float, created: str,
    files: Mapping[str, Any],
) -> bytes:  # fmt: skip
    """The bytes of a manifest, without credentials; `sha256` is the digest of its other fields."""
    content = {
        "schema": _SCHEMA,
        "key": key,
        "parts": redact(parts),
        "meta": redact(meta),
        "seconds": seconds,
        "created": created,
        "files": dict(files),
    }
    text = json.dumps({**content, "sha256": _own_digest(content)}, indent=1, sort_keys=True)
    return (text + "\n").encode()


def parse(folder: Path, key: str) -> dict[str, Any]:
    """Read the manifest in `folder`, without its own digest.

    Raises DamagedError if it is incomplete, changed, or of another entry than `key`.
    """
    path = folder / MANIFEST
    if folder.is_symlink() or path.is_symlink():
        raise DamagedError("a link in place of the entry")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        whole = isinstance(manifest, dict) and set(manifest) == _FIELDS
        if not whole or manifest.pop("sha256") != _own_digest(manifest):
            raise DamagedError(f"{MANIFEST} was changed")
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({type(error).__name__})") from error
    if manifest["schema"] != _SCHEMA or manifest["key"] != key:
        raise DamagedError(f"{MANIFEST} belongs to another entry or version")
    for name in manifest["files"]:
        _check_name(name)
    return manifest


def fingerprint(folder: Path, manifest: Mapping[str, Any]) -> Fingerprint:
    """Name, inode, size and time of every file: changes if a file is replaced, cheap to compute.

    Raises DamagedError if a file is missing, is a link or has another size.
    """
    root = folder.resolve()
    found = []
    for name, expected in manifest["files"].items():
        path = root / name
        if path.resolve() != path or not path.is_file():
            raise DamagedError(f"{name} is missing or a link")
        status = path.lstat()
        if status.st_size != expected["size"]:
            raise DamagedError(f"{name} has {status.st_size} bytes, not {expected['size']}")
        found.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def check_digests(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise DamagedError if the contents of a file have changed."""
    for name, expected in manifest["files"].items():
        try:
            actual = _file_digest(folder / name)
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from error
        if actual != expected["sha256"]:
            raise DamagedError(f"{name} was changed")


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or path.as_posix() != name:
        raise DamagedError(f"{MANIFEST} names a file outside its entry: {name!r}")


def _own_digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return digest([text])


def _file_digest(path: Path) -> str:
    """Digest of a file that fails for a link, which may have replaced the file after its check."""
    return file_digest(path, follow_links=False)
