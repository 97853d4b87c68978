"""Recognizes that memory ran out, in the words of every library, and refuses what cannot fit."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressbench.core.errors import UserError
from compressbench.core.formatting import bytes_text

ADVICE = "a smaller model, batch_size or number of search.workers needs less"
_WORDS = (
    "out of memory",
    "allocate memory",  # can't, cannot, failed to: torch, the C library, ONNX Runtime
    "unable to allocate",  # numpy
    "bad_alloc",  # C++
    "alloc_failed",  # cuBLAS, cuDNN
)


class OutOfMemoryError(UserError):
    """What a stage needs does not fit into memory; nothing of it is kept."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return _says_so(str(error))


@contextmanager
def memory_of(place: str) -> Iterator[None]:
    """Turn an error of the block that memory is at an end into one line that names `place`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        said = next((line for line in str(error).splitlines() if _says_so(line)), "")
        reason = said.strip() or type(error).__name__
        raise OutOfMemoryError(f"{place}: out of memory: {reason[:300]}; {ADVICE}") from error


def _says_so(text: str) -> bool:
    return any(words in text.lower() for words in _WORDS)


def oom_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where unknown."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


_LIMIT_OF_GROUP = Path("/sys/fs/cgroup/memory.max")  # of a container


def check_memory(what: str, size_bytes: int) -> None:
    """Raise UserError if `what`, which takes `size_bytes`, is larger than the whole memory."""
    at_hand = memory_bytes()
    if size_bytes > at_hand:
        raise UserError(
            f"{what}: {bytes_text(size_bytes)} of memory are needed, this machine has "
            f"{bytes_text(at_hand)}"
        )


def memory_bytes() -> int:
    """The memory of this machine, or of the container that this process runs in."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _LIMIT_OF_GROUP.read_text().strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdigit() else whole
