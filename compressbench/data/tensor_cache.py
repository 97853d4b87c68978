"""On-disk cache of tensors made from the files of a dataset, verified on reading."""

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

from compressbench.core.checked_files import DamagedFileError, remove, require_regular
from compressbench.core.digests import digest, named
from compressbench.core.disk_full import disk_full, is_disk_full
from compressbench.core.errors import UserError
from compressbench.data import files

Tensors = dict[str, Tensor]


def cached_tensors(
    identity: Mapping[str, Any], make: Callable[[], Tensors], fits: Callable[[Tensors], bool]
) -> Tensors:
    """The tensors of `identity`, from the cache or computed by `make` and cached.

    `identity` is plain JSON with everything that the tensors depend on. A cached file is used if it
    is intact and `fits` accepts it. With several processes, only one calls `make`.
    """
    key = digest([json.dumps(identity, sort_keys=True)])
    path = files.decoded_folder() / f"{key}.safetensors"
    cached = _read(path, fits)
    if cached is not None:
        return cached
    with _locked(path):
        cached = _read(path, fits)  # another process may have made them meanwhile
        if cached is not None:
            return cached
        tensors = make()
        _write(path, tensors)
        return tensors


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file for `path`, which the system releases if the process dies."""
    from filelock import FileLock

    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire()
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(error, path) from error
        raise UserError(f"cannot write {lock.lock_file}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _read(path: Path, fits: Callable[[Tensors], bool]) -> Tensors | None:
    """The cached tensors, or None; a damaged file, or what else is in its place, is deleted."""
    if not path.exists() and not path.is_symlink():
        return None
    try:
        require_regular(path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("sha256")
        if fits(tensors) and _contents(tensors) == expected:
            return tensors
        reason = "digest or shape differs"
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (SafetensorError, DamagedFileError, OSError) as error:
        reason = str(error)
    logging.getLogger(__name__).warning("%s is damaged (%s): decoding again", path, reason)
    remove(path)
    return None


def _write(path: Path, tensors: Tensors) -> None:
    try:
        with files.writing(path) as temporary:
            save_file(tensors, temporary, {"sha256": _contents(tensors)})
    except SafetensorError as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise UserError(f"cannot write {path} ({size} bytes): {error}") from error


def _contents(tensors: Tensors) -> str:
    return digest(named(dict(sorted(tensors.items()))))
