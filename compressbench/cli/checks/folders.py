"""Room and permission to write where a run writes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressbench.cli.checks.finding import BROKEN, FINE, LOOK, Finding
from compressbench.core.atomic import sync
from compressbench.core.formatting import bytes_text
from compressbench.store.entries import Store

_LITTLE, _PROBE = 10**9, 2**20


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at the folders of runs, sweeps and the store, and at that of temporary files."""
    yield _place("runs", Path(settings["runs"]), "hydra.run.dir=FOLDER")
    yield _place("sweeps", Path(settings["sweeps"]), "search.folder=FOLDER")
    yield _place("store", Store.default().root, "COMPRESSBENCH_STORE=FOLDER")
    yield _temporary()


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    absolute = folder.absolute()
    return next((p for p in (absolute, *absolute.parents) if os.path.lexists(p)), Path("/"))


def _temporary() -> Finding:
    """Python takes another folder, without a word, if TMPDIR cannot be used."""
    subject, wanted = "temporary files", os.environ.get("TMPDIR")
    try:
        taken = tempfile.gettempdir()
    except FileNotFoundError as error:
        return Finding(subject, BROKEN, str(error.strerror), "set TMPDIR to a writable folder")
    if wanted and Path(wanted).absolute() != Path(taken):
        found = f"TMPDIR={wanted} cannot be used; {taken} is taken instead"
        return Finding(subject, LOOK, found, f"mkdir -p {wanted}, make room there, or unset TMPDIR")
    return _place(subject, Path(taken), "TMPDIR=FOLDER")


def _place(subject: str, folder: Path, setting: str) -> Finding:
    """Write a megabyte, flush it, remove it."""
    place = existing(folder)
    try:
        disk = shutil.disk_usage(place)
        with tempfile.NamedTemporaryFile(prefix=".compressbench-doctor-", dir=place) as file:
            file.write(bytes(_PROBE))
            file.flush()
            sync(Path(file.name))
    except OSError as error:
        found = f"{place}: {error.strerror or error}"
        return Finding(subject, BROKEN, found, f"make it writable, make room, or give {setting}")
    found = f"{bytes_text(disk.free)} free in {place}"
    if disk.free >= _LITTLE:
        return Finding(subject, FINE, found)
    advice = "compressbench store collect --max-size 1GB" if subject == "store" else "make room"
    return Finding(subject, LOOK, found, f"{advice}, or give {setting}")
