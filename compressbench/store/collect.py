"""Frees space: removes the least recently used entries, except those pinned or in use."""

from __future__ import annotations

import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from compressbench.store import pins
from compressbench.store.entries import Store
from compressbench.store.manifest import MANIFEST
from compressbench.store.processes import is_abandoned
from compressbench.store.publish import tree_bytes, writing

STALE_SECONDS = 24 * 3600.0  # age at which unused resume points and damaged entries are removed


@dataclass(frozen=True)
class Collected:
    """Result of a collection; `pinned` counts the entries kept as they are pinned or in use."""

    removed: tuple[str, ...]
    freed_bytes: int
    kept_bytes: int
    pinned: int


@dataclass(frozen=True)
class _Candidate:
    key: str
    folder: Path
    size_bytes: int
    last_use: float


def collect(
    store: Store, max_bytes: int | None = None, min_free_bytes: int = 0, dry_run: bool = False
) -> Collected:
    """Remove leftovers, then the least recently used entries, until both bounds hold.

    `max_bytes` bounds the total size of all entries, `min_free_bytes` the free space on the disk.
    Entries that are pinned or that a live process has read are kept, even if a bound is then not
    met. With `dry_run`, nothing is removed.
    """
    if not store.root.is_dir():
        return Collected((), 0, 0, 0)
    freed = _clear_leftovers(store, dry_run)
    candidates = sorted(_candidates(store), key=lambda c: (c.last_use, c.key))
    total = sum(c.size_bytes for c in candidates)
    free = shutil.disk_usage(store.root).free + (freed if dry_run else 0)
    removed: list[str] = []
    pinned = 0
    for candidate in candidates:
        if (max_bytes is None or total <= max_bytes) and free >= min_free_bytes:
            break
        if pins.reasons(store.root, candidate.key):
            pinned += 1
        elif dry_run or _remove(store, candidate):
            removed.append(candidate.key)
            total -= candidate.size_bytes
            free += candidate.size_bytes
            freed += candidate.size_bytes
    return Collected(tuple(removed), freed, total, pinned)


def _candidates(store: Store) -> list[_Candidate]:
    found = []
    for key in store.all_keys():
        folder = store.folder(key)
        manifest = folder / MANIFEST
        status = manifest if manifest.exists() else folder
        found.append(_Candidate(key, folder, tree_bytes(folder), status.lstat().st_mtime))
    return found


def _remove(store: Store, candidate: _Candidate) -> bool:
    """Remove an entry; return False if a process has started to use it meanwhile.

    A reader registers its hold before it looks for the entry, and this function checks for holds
    after renaming the entry. So either the reader misses the entry, or its hold is seen here and
    the entry is put back.
    """
    trash = store.root / "tmp" / f"trash-{uuid.uuid4().hex}"
    with store.removing():
        try:
            trash.parent.mkdir(exist_ok=True)
            candidate.folder.rename(trash)
        except FileNotFoundError:
            return False
        if pins.reasons(store.root, candidate.key) and not candidate.folder.exists():
            trash.rename(candidate.folder)
            return False
    pins.prune(store.root, candidate.key)
    shutil.rmtree(trash)
    return True


def _clear_leftovers(store: Store, dry_run: bool) -> int:
    """Remove leftovers of killed processes and old quarantined entries; return the bytes freed."""
    freed = 0
    for path in [*store.root.glob("tmp/*"), *store.root.glob("quarantine/*")]:
        if _is_leftover(store, path):
            freed += tree_bytes(path)
            if not dry_run:
                with writing(store.root):
                    _delete(path)
    for key in [] if dry_run else pins.marked(store.root):
        pins.prune(store.root, key)
    return freed


def _delete(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _is_leftover(store: Store, path: Path) -> bool:
    kind, _, rest = path.name.partition("-")
    if kind == "trash":
        return True
    if kind == "build":
        return is_abandoned(path)
    if kind == "work":
        return _age_seconds(path) > STALE_SECONDS and not _is_building(store, rest)
    return path.parent.name == "quarantine" and _age_seconds(path) > STALE_SECONDS


def _is_building(store: Store, key: str) -> bool:
    lock = store.lock(key)
    if not store.try_lock(lock):
        return True
    lock.release()
    return False


def _age_seconds(folder: Path) -> float:
    """Seconds since the last change of the folder or of anything in it."""
    times = [p.lstat().st_mtime for p in (folder, *folder.rglob("*"))]
    return time.time() - max(times)
