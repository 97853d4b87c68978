"""Seeds of samplers: a worker must not repeat what another one, or it before a restart, drew."""

from __future__ import annotations

import hashlib


def stream(seed: int, *parts: int | str) -> int:
    """A seed in [0, 2**32) for the part of a sweep that `parts` name."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
