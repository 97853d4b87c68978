"""Files of a dataset: their digests, the manifest, and writes that are whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressbench.core.atomic import atomic_path
from compressbench.core.digests import file_digest
from compressbench.core.errors import CheckFailedError, UserError

MEMO = "hashes.json"


def decoded_folder() -> Path:
    """Where decoded images and the memo of file hashes are kept; made when missing."""
    folder = Path(os.environ.get("COMPRESSBENCH_STORE") or ".compressbench").absolute() / "decoded"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
    return folder


def workers() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`atomic_path`, with a UserError that names `path` where it cannot be written."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def digests(paths: Iterable[Path], *, fresh: bool = False) -> dict[Path, str]:
    """SHA-256 of every file, remembered by (absolute path, inode, size, mtime_ns).

    `fresh` reads every file whatever is remembered, and corrects the memory.
    """
    memo_path = decoded_folder() / MEMO
    memo = _read_memo(memo_path)
    stamps = {path: _stamp(path) for path in paths}
    known = {
        path: str(memo[str(path.absolute())][1])
        for path, stamp in stamps.items()
        if not fresh and memo.get(str(path.absolute()), [None])[0] == stamp
    }
    unknown = [path for path in stamps if path not in known]
    if unknown:
        with ThreadPoolExecutor(workers()) as pool:
            found = dict(zip(unknown, pool.map(file_digest, unknown), strict=True))
        # Another process may have added its own meanwhile; the last one to write wins, and what
        # it loses is hashed once more.
        memo = _read_memo(memo_path)
        memo |= {str(path.absolute()): [stamps[path], found[path]] for path in unknown}
        with writing(memo_path) as temporary:
            temporary.write_text(json.dumps(memo, indent=0), encoding="utf-8")
        known |= found
    return {path: known[path] for path in stamps}


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _read_memo(path: Path) -> dict[str, Any]:
    """What is remembered; nothing when the file is missing or damaged, which costs time only."""
    try:
        memo = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = memo.items() if isinstance(memo, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, list) and len(entry) == 2}


def describe(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The manifest's lines: `path` (the name within the dataset), `size_bytes`, `sha256`."""
    try:
        found = digests(files.values())
        return [
            {"path": name, "size_bytes": path.stat().st_size, "sha256": found[path]}
            for name, path in sorted(files.items())
        ]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error


def verify(files: Mapping[str, Path], described: Iterable[Mapping[str, Any]]) -> None:
    """Read every file again; CheckFailedError names the first that is not as described."""
    try:
        found = digests(files.values(), fresh=True)
    except OSError as error:
        raise CheckFailedError(
            f"dataset: {error.filename} cannot be read any more: {error.strerror}"
        ) from error
    for line in described:
        digest = found[files[line["path"]]]
        if digest != line["sha256"]:
            raise CheckFailedError(
                f"dataset: {line['path']} changed while it was in use "
                f"(sha256 {line['sha256'][:12]} → {digest[:12]}): run the same command again"
            )
