"""Refuses what cannot fit into the memory of this machine, before it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from compressbench.core.errors import UserError
from compressbench.core.formatting import bytes_text

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
