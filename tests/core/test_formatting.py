from __future__ import annotations

import pytest

from compressbench.core.formatting import parse_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("5GB", 5 * 10**9), ("1.5 GiB", 1610612736), ("300kB", 300_000), ("1000", 1000),
     ("2KiB", 2048), ("96kib", 98304), ("7m", 7 * 10**6), ("2g", 2 * 10**9), ("1TB", 10**12),
     ("1 TiB", 2**40), ("12B", 12), (" .5k ", 500), ("2.MB", 2 * 10**6), ("0", 0),
     ("1.005kB", 1005)],
)  # fmt: skip
def test_sizes_are_read(text, size_bytes):
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GB", "kB", "-1", "-1kB", "1e9", "5 XB", "5iB", "nan", "1 2", "1 parsec", "."]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="a size such as 100kB"):
        parse_bytes(text)
