"""The form in which a file ships over the air: zstd at its highest usual level."""

from __future__ import annotations

from compressbench.core.errors import CheckFailedError

_LEVEL = 19


def compressed(content: bytes, name: str) -> bytes:
    """`content` under zstd 19. Raises CheckFailedError, with `name`, unless it can be restored."""
    import zstandard

    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    if zstandard.ZstdDecompressor().decompress(packed) != content:
        raise CheckFailedError(f"{name}: zstd does not give back the same bytes")
    return packed
