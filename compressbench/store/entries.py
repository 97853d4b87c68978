"""The store: entries under content keys, built once, published atomically, verified on read."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compressbench.core.disk_full import is_disk_full
from compressbench.core.errors import UserError
from compressbench.core.owners import check_entry, check_writers
from compressbench.store import manifest as manifests
from compressbench.store import pins
from compressbench.store.keys import content_key, is_key
from compressbench.store.manifest import DamagedError, Fingerprint
from compressbench.store.processes import is_abandoned, process_token
from compressbench.store.publish import checked_root, publish, store_full, writing

STORE_VARIABLE = "COMPRESSBENCH_STORE"
_POLL_SECONDS = 0.1
_log = logging.getLogger("compressbench.store")

Build = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One stored result: its files are in `folder`, its metadata in `manifest`."""

    key: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that the key was computed from, without credentials."""
        parts: dict[str, Any] = self.manifest["parts"]
        return parts

    @property
    def meta(self) -> dict[str, Any]:
        """Plain JSON returned by the build."""
        meta: dict[str, Any] = self.manifest["meta"]
        return meta

    @property
    def seconds(self) -> float:
        """Duration of the build."""
        return float(self.manifest["seconds"])

    @property
    def size_bytes(self) -> int:
        return sum(file["size"] for file in self.manifest["files"].values())

    @property
    def last_use(self) -> float:
        """Time of the last read, in seconds since the epoch."""
        return (self.folder / manifests.MANIFEST).stat().st_mtime


class Store:
    """A folder of entries, safe for any number of processes at the same time.

    `entries/ab/<key>/` holds published entries, `tmp/` unfinished builds, `locks/` one lock per
    key, `quarantine/` damaged entries, `pins/` reasons to keep an entry; created when needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._verified: dict[str, Fingerprint] = {}

    @classmethod
    def default(cls) -> Store:
        """The store at COMPRESSBENCH_STORE, or `.compressbench` in the current folder."""
        return cls(checked_root(Path(os.environ.get(STORE_VARIABLE) or ".compressbench")))

    def folder(self, key: str) -> Path:
        """The folder of an entry, existing or not. Raises UserError for a malformed key."""
        if not is_key(key):
            raise UserError(f"a key must have 64 hexadecimal digits, got {key!r}")
        return self.root / "entries" / key[:2] / key

    def all_keys(self) -> Iterator[str]:
        """The keys of all entries, sorted, without verifying the entries."""
        for folder in sorted(self.root.glob("entries/??/*")):
            if is_key(folder.name):
                yield folder.name

    def peek(self, key: str) -> Entry | None:
        """The entry with only its manifest verified; None if it is absent or damaged."""
        folder = self.folder(key)
        try:
            return Entry(key, folder, manifests.parse(folder, key))
        except DamagedError:
            return None

    def read(self, key: str) -> Entry | None:
        """Read and verify an entry; return None if there is none.

        The first read in a process verifies all digests, later ones only file sizes and times. A
        damaged entry is moved to quarantine/ with a warning and treated as absent.
        """
        folder = self.folder(key)
        if (identity := self._identity(folder)) is None:
            return None
        if key not in self._verified:
            check_entry(self.root, folder)
            self._hold(key)  # before the entry is opened: see `collect._remove`
        try:
            manifest = manifests.parse(folder, key)
            current = manifests.fingerprint(folder, manifest)
            if self._verified.get(key) != current:
                manifests.check_digests(folder, manifest)
        except DamagedError as damage:
            self._quarantine(key, identity, f"is damaged: {damage}")
            return None
        self._verified[key] = current
        with suppress(OSError):  # a read-only store can be used, too
            os.utime(folder / manifests.MANIFEST)
        return Entry(key, folder, manifest)

    def get_or_build(
        self, parts: Mapping[str, Any], build: Build, *, on_wait: Callable[[], None] | None = None
    ) -> tuple[Entry, bool]:
        """Return the entry of `parts` and whether it existed (or another process just built it).

        `build(folder)` writes files into an empty folder and returns plain JSON; if it raises,
        nothing is stored. If several processes need the same entry, one builds it and the others
        wait, after calling `on_wait` once; if the builder dies, another takes over. Raises
        UserError if the store is full or cannot be written.
        """
        key = content_key(parts)
        entry = self.read(key)
        if entry is not None:
            return entry, True
        self._make_folders()
        with self._building(key, on_wait) as entry:
            if entry is not None:
                return entry, True
            return self._build(key, parts, build), False

    def set_aside(self, entry: Entry, reason: str) -> None:
        """Move an unusable entry to quarantine/ with a warning; it is then treated as absent."""
        identity = self._identity(entry.folder)
        if identity is not None:
            self._quarantine(entry.key, identity, reason)

    def scratch(self, key: str) -> Path:
        """A working folder for building `key`; survives a crash, removed when the entry is done."""
        folder = self._scratch_path(key)
        with writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def pin(self, key: str, reason: str) -> None:
        """Protect an entry from collection. Raises UserError if there is no such entry."""
        if not self.folder(key).is_dir():
            raise UserError(f"no entry {key[:12]} to pin in {self.root}")
        with writing(self.root):
            pins.pin(self.root, key, reason)

    def unpin(self, key: str, reason: str | None = None) -> None:
        """Remove one reason to keep an entry, or all reasons."""
        with writing(self.root):
            pins.unpin(self.root, key, reason)

    def lock(self, key: str) -> FileLock:
        """The lock held while `key` is built; the kernel releases it if the holder dies."""
        return FileLock(self._lock_path(key))

    def try_lock(self, lock: FileLock) -> bool:
        """Acquire a lock if it is free; return False if another process holds it."""
        with writing(self.root):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
        return True

    @contextmanager
    def removing(self) -> Iterator[None]:
        """Hold the lock for moving entries out of entries/, one process at a time."""
        with writing(self.root), FileLock(self._lock_path("removal")):
            yield

    def _lock_path(self, name: str) -> Path:
        path = self.root / "locks" / f"{name}.lock"
        with writing(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _scratch_path(self, key: str) -> Path:
        return self.root / "tmp" / f"work-{key}"

    def _identity(self, folder: Path) -> int | None:
        with writing(self.root), suppress(FileNotFoundError, NotADirectoryError):
            return folder.lstat().st_ino
        return None

    def _make_folders(self) -> None:
        folders = [self.root / name for name in ("entries", "tmp", "quarantine")]
        check_writers(self.root, *folders)
        with writing(self.root):
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)

    def _hold(self, key: str) -> None:
        with suppress(OSError):  # not possible in a read-only store, where nothing is collected
            pins.hold(self.root, key)

    @contextmanager
    def _building(self, key: str, on_wait: Callable[[], None] | None) -> Iterator[Entry | None]:
        """Wait until the entry exists (yield it) or this process may build it (yield None)."""
        lock = self.lock(key)
        while not self.try_lock(lock):
            if on_wait is not None:
                on_wait()
                on_wait = None
            time.sleep(_POLL_SECONDS)
            if (entry := self.read(key)) is not None:
                yield entry
                return
        try:
            yield self.read(key)
        finally:
            lock.release()

    def _build(self, key: str, parts: Mapping[str, Any], build: Build) -> Entry:
        self._clear_builds(key)
        temporary = self.root / "tmp" / f"build-{key}-{process_token()}-{uuid.uuid4().hex[:8]}"
        with writing(self.root):
            temporary.mkdir()
        started = time.monotonic()
        try:
            meta = build(temporary)
            seconds = time.monotonic() - started
            with writing(self.root, temporary):
                entry = self._publish(key, parts, meta, seconds, temporary)
        except Exception as error:
            if is_disk_full(error):
                raise store_full(self.root, temporary, error) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(self._scratch_path(key), ignore_errors=True)
        return entry

    def _publish(
        self, key: str, parts: Mapping[str, Any], meta: Mapping[str, Any], seconds: float,
        temporary: Path,
    ) -> Entry:  # fmt: skip
        files = manifests.file_digests(temporary)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        text = manifests.compose(key, parts, meta, seconds, created, files)
        folder = self.folder(key)
        self._hold(key)
        while not publish(temporary, folder, text):
            theirs = self.read(key)
            if theirs is not None:
                return theirs
            (temporary / manifests.MANIFEST).unlink()
        manifest = manifests.parse(folder, key)
        self._verified[key] = manifests.fingerprint(folder, manifest)
        return Entry(key, folder, manifest)

    def _clear_builds(self, key: str) -> None:
        """Remove the folders of killed builders of this key."""
        for path in self.root.glob(f"tmp/build-{key}-*"):
            if is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)

    def _quarantine(self, key: str, identity: int, reason: str) -> None:
        """Quarantine an entry, unless another process has already replaced it."""
        folder = self.folder(key)
        target = self.root / "quarantine" / f"{key}-{uuid.uuid4().hex[:8]}"
        self._verified.pop(key, None)
        with self.removing():
            if self._identity(folder) != identity:
                return
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
            os.utime(target, follow_symlinks=False)  # STALE_SECONDS count from now
        _log.warning("entry %s %s; set aside in %s, will be computed again",
                     key[:12], reason, target)  # fmt: skip
