"""Files that hold a digest of their own content, so that a damaged one is never taken as written.

The digest is the end of the file itself: no kill can come between the content and its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MARK = b"\nsha256 "
_TRAILER_BYTES = len(_MARK) + 64 + 1
_FIELD, _END = b'"sha256": "', b'"}\n'


class DamagedFileError(Exception):
    """A file is not as it was written; the text says what is wrong with it."""


def append_digest(path: Path, place: str) -> None:
    """End the file `path` with the digest of its content and of `place`, where it is valid."""
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, lambda: hashlib.sha256(place.encode()))
    with path.open("ab") as file:
        file.write(_trailer(sha.hexdigest()))


def read_checked(path: Path, place: str) -> memoryview:
    """The content of a file that `append_digest` ended, which is not looked at before it fits.

    Raises DamagedFileError if it is not what was written, or was written for another `place`.
    """
    whole = memoryview(read_regular(path))
    content, trailer = whole[:-_TRAILER_BYTES], whole[-_TRAILER_BYTES:]
    sha = hashlib.sha256(place.encode())
    sha.update(content)
    if trailer != _trailer(sha.hexdigest()):
        raise DamagedFileError("its digest differs")
    return content


def read_regular(path: Path) -> bytes:
    """The bytes of a file that we wrote; it follows no link, and waits for no writer of a pipe.

    Raises FileNotFoundError, or DamagedFileError for what is no regular file or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 - of the file that was opened
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DamagedFileError("not a regular file")
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFileError(error.strerror or str(error)) from error


def require_regular(path: Path) -> None:
    """Raise DamagedFileError for a link, a folder or a pipe; OSError where there is nothing."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise DamagedFileError("not a regular file")


def remove(path: Path) -> None:
    """Remove a file, or whatever is in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def json_with_digest(content: Mapping[str, Any], **options: Any) -> bytes:
    """JSON of an object whose last field, `sha256`, is the digest of the text before it.

    `options` are those of `json.dumps`. Raises ValueError for NaN and infinity.
    """
    text = json.dumps(content, allow_nan=False, **{"ensure_ascii": False, **options})
    head = (text.removesuffix("}").rstrip() + ",\n ").encode()
    return head + _FIELD + _sha256(head) + _END


def read_json_with_digest(path: Path) -> dict[str, Any]:
    """The object that `json_with_digest` made, without its digest.

    Raises FileNotFoundError, or DamagedFileError if any byte of the file differs.
    """
    content = read_regular(path)
    head, mark, end = content.rpartition(_FIELD)
    if not mark or end != _sha256(head) + _END:
        raise DamagedFileError("its digest differs: it was damaged or edited")
    found: dict[str, Any] = json.loads(content)
    del found["sha256"]
    return found


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _trailer(digest: str) -> bytes:
    return _MARK + digest.encode() + b"\n"
