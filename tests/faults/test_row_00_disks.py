"""The small file systems of the other tests do fill up."""

from __future__ import annotations

import errno

import pytest

from tests.faults.disks import make_read_only, resize, small_disk


def test_row_00_a_small_disk_fills_up_and_can_be_read_only(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        with pytest.raises(OSError) as full:
            (disk / "large").write_bytes(bytes(100_000))
        assert full.value.errno == errno.ENOSPC
        resize(disk, "1m")
        (disk / "large").write_bytes(bytes(100_000))
        make_read_only(disk)
        with pytest.raises(OSError) as refused:
            (disk / "other").write_bytes(b"x")
        assert refused.value.errno == errno.EROFS
