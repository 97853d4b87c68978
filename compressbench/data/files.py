"""Files of a dataset: digests, manifest entries, verification and atomic writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressbench.core.atomic import atomic_path
from compressbench.core.checked_files import (
    DamagedFileError,
    json_with_digest,
    read_json_with_digest,
)
from compressbench.core.digests import file_digest
from compressbench.core.disk_full import DiskFullError
from compressbench.core.errors import TransientError, UserError
from compressbench.core.input_files import check_status
from compressbench.core.owners import check_writers

MEMO = "hashes.json"


def decoded_folder() -> Path:
    """The folder of decoded images and the memo of file hashes; created if missing."""
    folder = Path(os.environ.get("COMPRESSBENCH_STORE") or ".compressbench").absolute() / "decoded"
    check_writers(folder.parent, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {folder}: {error.strerror}") from error
    return folder


def workers() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Like `atomic_path`, but raises UserError if `path` cannot be written."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except DiskFullError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def digests(paths: Iterable[Path], *, fresh: bool = False) -> dict[Path, str]:
    """SHA-256 of every file, cached by (absolute path, inode, size, mtime_ns).

    `fresh` reads every file regardless of the cache, and updates the cache.
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
            computed = dict(zip(unknown, pool.map(file_digest, unknown), strict=True))
        # Other processes may have added entries meanwhile. The last writer wins; a lost entry only
        # means that its file is hashed again.
        memo = _read_memo(memo_path)
        memo |= {str(path.absolute()): [stamps[path], computed[path]] for path in unknown}
        with writing(memo_path) as temporary:
            temporary.write_bytes(json_with_digest({"files": memo}, ensure_ascii=True))
        known |= computed
    return {path: known[path] for path in stamps}


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    check_status(status, str(path))
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _read_memo(path: Path) -> dict[str, Any]:
    """The cached hashes; empty if the file is missing or damaged, which only costs time."""
    try:
        memo: dict[str, Any] = read_json_with_digest(path)["files"]
    except (OSError, DamagedFileError):
        return {}
    return memo


def describe(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Manifest entries: `path` (name within the dataset), `size_bytes` and `sha256`."""
    try:
        hashes = digests(files.values())
        return [
            {"path": name, "size_bytes": path.stat().st_size, "sha256": hashes[path]}
            for name, path in sorted(files.items())
        ]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error


def verify(files: Mapping[str, Path], described: Iterable[Mapping[str, Any]]) -> None:
    """Hash every file again; raises TransientError for the first that changed."""
    try:
        hashes = digests(files.values(), fresh=True)
    except OSError as error:
        raise TransientError(
            f"dataset: {error.filename} can no longer be read: {error.strerror}"
        ) from error
    for line in described:
        digest = hashes[files[line["path"]]]
        if digest != line["sha256"]:
            raise TransientError(
                f"dataset: {line['path']} changed while in use "
                f"(sha256 {line['sha256'][:12]} → {digest[:12]}): run the same command again"
            )
