"""SHA-256 of files, texts and tensors."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.core.atomic import atomic_path
from compressbench.core.errors import CheckFailedError

if TYPE_CHECKING:
    from torch import Tensor


def digest(parts: Iterable[str | Tensor]) -> str:
    """SHA-256 (hex) of the concatenated texts (UTF-8) and tensor values (row-major)."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else _values(part))
    return sha.hexdigest()


def named(tensors: Mapping[str, Tensor]) -> Iterator[str | Tensor]:
    """Parts for `digest`: name, type and shape of each tensor, then its values."""
    for name, tensor in tensors.items():
        yield f"{name}{tensor.dtype}{tuple(tensor.shape)}"
        yield tensor


def _values(tensor: Tensor) -> Any:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def copy_checked(source: Path, target: Path, sha256: str) -> None:
    """Copy a file whose content must have this digest; the copy is read again and checked.

    Raises CheckFailedError if it has another; `target` is then as it was.
    """
    with atomic_path(target, needed_bytes=source.stat().st_size) as temporary:
        shutil.copyfile(source, temporary)
        if file_digest(temporary) != sha256:
            raise CheckFailedError(
                f"{source} is not the file that was measured and stored: not copied"
            )


def file_digest(path: Path, follow_links: bool = True) -> str:
    """SHA-256 (hex) of a file; raises OSError for a symbolic link unless `follow_links`."""
    flags = os.O_RDONLY if follow_links else os.O_RDONLY | os.O_NOFOLLOW
    with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 - of the file that was opened
        return hashlib.file_digest(file, "sha256").hexdigest()
