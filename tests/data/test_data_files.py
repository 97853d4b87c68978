from __future__ import annotations

import hashlib
import json
import os

import pytest

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.data import files


@pytest.fixture
def named(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"content")
    return {"a.bin": path}


def restore_times(path, change):
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_manifest_names_size_and_digest(named):
    expected = hashlib.sha256(b"content").hexdigest()
    assert files.describe(named) == [{"path": "a.bin", "size_bytes": 7, "sha256": expected}]


def test_a_known_file_is_not_read_again(named, monkeypatch):
    first = files.describe(named)
    monkeypatch.setattr(files, "file_digest", lambda path: pytest.fail(f"read {path} again"))
    assert files.describe(named) == first


def test_a_changed_file_is_read_again(named):
    first = files.describe(named)
    named["a.bin"].write_bytes(b"CONTENT")
    assert files.describe(named) != first


def test_verify_sees_a_change_behind_unchanged_times_and_corrects_the_memory(named):
    described = files.describe(named)
    files.verify(named, described)
    path = named["a.bin"]
    restore_times(path, lambda: path.write_bytes(b"CONTENT"))
    assert files.describe(named) == described  # the stamp cannot tell
    with pytest.raises(CheckFailedError, match=r"a\.bin changed while in use"):
        files.verify(named, described)
    assert files.describe(named)[0]["sha256"] == hashlib.sha256(b"CONTENT").hexdigest()


def test_a_file_that_goes_away_fails_the_check(named):
    described = files.describe(named)
    named["a.bin"].unlink()
    with pytest.raises(CheckFailedError, match=r"a\.bin can no longer be read"):
        files.verify(named, described)


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"x": 3}'])
def test_a_damaged_memory_costs_time_only(named, store, damage):
    first = files.describe(named)
    (store / files.MEMO).write_text(damage)
    assert files.describe(named) == first
    assert str(named["a.bin"]) in json.loads((store / files.MEMO).read_text())["files"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")
    with (
        pytest.raises(UserError, match="kept: the disk is full"),
        files.writing(path) as temporary,
    ):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]


def test_a_store_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot create the folder"):
        files.decoded_folder()
