"""Tensors made from a dataset's files once and kept on disk, verified when they are read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compressbench.core.digests import digest
from compressbench.core.errors import UserError
from compressbench.data import files

Tensors = dict[str, Tensor]


def cached_tensors(
    identity: Mapping[str, Any], make: Callable[[], Tensors], fits: Callable[[Tensors], bool]
) -> Tensors:
    """The tensors of `identity` (plain JSON that says all they depend on): from the disk where
    they are whole and `fits` says so, else made, by one process, and put there.
    """
    key = digest([json.dumps(identity, sort_keys=True)])
    path = files.decoded_folder() / f"{key}.safetensors"
    found = _read(path, fits)
    if found is not None:
        return found
    with _locked(path):  # several processes make them once
        found = _read(path, fits)
        if found is not None:
            return found
        tensors = make()
        _write(path, tensors)
        return tensors


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`; it is released when its holder dies."""
    from filelock import FileLock

    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write {lock.lock_file}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _read(path: Path, fits: Callable[[Tensors], bool]) -> Tensors | None:
    """The kept tensors, or None where there are none; damaged ones are deleted."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("sha256")
        if fits(tensors) and _contents(tensors) == expected:
            return tensors
        reason = "another digest"
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (SafetensorError, OSError) as error:
        reason = str(error)
    logging.getLogger(__name__).warning("%s is damaged (%s): decoding again", path, reason)
    path.unlink(missing_ok=True)
    return None


def _write(path: Path, tensors: Tensors) -> None:
    try:
        with files.writing(path) as temporary:
            save_file(tensors, temporary, {"sha256": _contents(tensors)})
    except SafetensorError as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise UserError(f"cannot write {path} ({size} bytes): {error}") from error


def _contents(tensors: Tensors) -> str:
    return digest(tensors[name] for name in sorted(tensors))
