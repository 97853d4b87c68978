"""Recognizes that memory ran out, for which every library has words of its own."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressbench.core.errors import UserError

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
