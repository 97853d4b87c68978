"""Compresses a file as it would be downloaded: zstd at level 19."""

from __future__ import annotations

from compressbench.core.errors import CheckFailedError

_LEVEL = 19


def compressed(content: bytes, name: str) -> bytes:
    """`content` compressed with zstd; raises CheckFailedError if it cannot be restored."""
    import zstandard

    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    if zstandard.ZstdDecompressor().decompress(packed) != content:
        raise CheckFailedError(f"{name}: zstd does not restore the same bytes")
    return packed
