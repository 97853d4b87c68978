"""Entries: stored once, the same on a hit and on a miss, verified on read."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.store.entries import Store
from compressbench.store.keys import content_key

PARTS = {"schema": 1, "kind": "stage", "stage": "Prune", "config": {"sparsity": 0.5}}
OTHER = {**PARTS, "config": {"sparsity": 0.6}}


def build(folder):
    (folder / "a.bin").write_bytes(b"a" * 5000)
    (folder / "b.bin").write_bytes(b"b" * 5000)
    (folder / "sub").mkdir()
    (folder / "sub" / "c.txt").write_text("drei – três\n")
    return {"figures": (1, 2.5), "name": "x"}


def refuse(folder):
    raise AssertionError("built although it was stored")


@pytest.fixture(params=["store", "ein Ordner mit Leerzeichen/ñandú 店"])
def store(tmp_path, request):
    return Store(tmp_path / request.param)


def test_second_time_is_a_hit_with_the_same_content(store):
    first, hit = store.get_or_build(PARTS, build)
    assert not hit
    second, hit = Store(store.root).get_or_build(PARTS, refuse)
    assert hit
    assert first == second
    assert first.key == content_key(PARTS)
    assert first.meta == {"figures": [1, 2.5], "name": "x"}
    assert first.parts == PARTS
    assert first.folder == store.root / "entries" / first.key[:2] / first.key
    assert (second.folder / "sub" / "c.txt").read_text() == "drei – três\n"
    assert first.size_bytes == 10_000 + len("drei – três\n".encode())
    assert set(first.manifest["files"]) == {"a.bin", "b.bin", "sub/c.txt"}


def test_absent_is_none_and_reading_creates_nothing(store):
    assert store.read(content_key(PARTS)) is None
    assert not store.root.exists()


def test_seconds_are_those_of_the_build(store):
    entry, _ = store.get_or_build(PARTS, lambda folder: time.sleep(0.05) or {})
    assert 0.05 <= entry.seconds < 5


def test_a_failed_build_stores_nothing_and_keeps_its_scratch(store):
    key = content_key(PARTS)

    def fail(folder):
        build(folder)
        (store.scratch(key) / "epoch.ckpt").write_text("1")
        raise CheckFailedError("NaN")

    with pytest.raises(CheckFailedError, match="NaN"):
        store.get_or_build(PARTS, fail)
    assert store.read(key) is None
    assert [p.name for p in (store.root / "tmp").iterdir()] == [f"work-{key}"]

    def resume(folder):
        assert (store.scratch(key) / "epoch.ckpt").read_text() == "1"
        return build(folder)

    store.get_or_build(PARTS, resume)
    assert list((store.root / "tmp").iterdir()) == []


def test_an_interrupt_leaves_nothing(store):
    def interrupt(folder):
        build(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_build(PARTS, interrupt)
    assert list((store.root / "tmp").iterdir()) == []
    assert not store.get_or_build(PARTS, build)[1]


def test_what_was_published_between_the_look_and_the_lock_is_used(store, monkeypatch):
    acquire = Store.try_lock

    def late(self, lock):
        monkeypatch.setattr(Store, "try_lock", acquire)
        assert not Store(store.root).get_or_build(PARTS, build)[1]
        return acquire(self, lock)

    monkeypatch.setattr(Store, "try_lock", late)
    assert store.get_or_build(PARTS, refuse)[1]


def test_who_comes_second_without_a_lock_uses_the_first_entry(store):
    def overtaken(folder):
        theirs, _ = Store(store.root / "theirs").get_or_build(PARTS, build)
        target = store.folder(theirs.key)
        target.parent.mkdir(parents=True)
        shutil.copytree(theirs.folder, target)
        (folder / "mine").write_text("another content")
        return {}

    entry, _ = store.get_or_build(PARTS, overtaken)
    assert entry.meta["name"] == "x"
    assert not (entry.folder / "mine").exists()


def test_who_comes_second_to_a_damaged_entry_replaces_it(store):
    def overtaken(folder):
        target = store.folder(content_key(PARTS))
        target.mkdir(parents=True)
        (target / "manifest.json").write_text("{}")
        return build(folder)

    entry, _ = store.get_or_build(PARTS, overtaken)
    assert Store(store.root).read(entry.key) == entry


def test_a_use_renews_the_time(tmp_path):
    store = Store(tmp_path)
    entry, _ = store.get_or_build(PARTS, build)
    os.utime(entry.folder / "manifest.json", (1, 1))
    assert entry.last_use == 1
    store.read(entry.key)
    assert time.time() - entry.last_use < 60


def test_credentials_are_not_written_down(tmp_path):
    parts = {**PARTS, "config": {"url": "postgresql://me:hunter2@host/db?password=hunter2"}}
    store = Store(tmp_path)
    entry, _ = store.get_or_build(parts, lambda folder: {"from": "https://me:hunter2@host/x"})
    assert "hunter2" not in (entry.folder / "manifest.json").read_text()
    assert entry.key == content_key(parts)
    assert Store(tmp_path).get_or_build(parts, refuse)[1]


def test_a_build_may_not_leave_links_nor_our_manifest(tmp_path):
    def linked(folder):
        (folder / "x").symlink_to("/etc/passwd")
        return {}

    with pytest.raises(CheckFailedError, match="x is not a regular file"):
        Store(tmp_path).get_or_build(PARTS, linked)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_meta_that_is_no_json_number_is_not_stored(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        store.get_or_build(PARTS, lambda folder: {"accuracy": float("nan")})
    assert store.read(content_key(PARTS)) is None


@pytest.mark.parametrize("key", ["", "abc", "../" * 21 + "a", "A" * 64, "a" * 63 + "\n"])
def test_a_key_is_a_key(tmp_path, key):
    with pytest.raises(UserError, match="64 hexadecimal"):
        Store(tmp_path).read(key)


@pytest.mark.parametrize("below", ["file", "file/store"])
def test_a_store_that_cannot_be_made_is_the_users_mistake(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be used.*COMPRESSBENCH_STORE") as caught:
        Store(tmp_path / below).get_or_build(PARTS, refuse)
    assert str(tmp_path / below) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tmp", "locks", "entries"])
def test_a_store_with_a_file_in_place_of_a_folder_is_the_users_mistake(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=name):
        Store(tmp_path).get_or_build(PARTS, build)


def test_default_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMPRESSBENCH_STORE", raising=False)
    assert Store.default().root == tmp_path / ".compressbench"
    monkeypatch.setenv("COMPRESSBENCH_STORE", "elsewhere")
    assert Store.default().root == tmp_path / "elsewhere"


def test_manifest_says_all_about_the_files(tmp_path):
    import hashlib

    entry, _ = Store(tmp_path).get_or_build(PARTS, build)
    manifest = json.loads((entry.folder / "manifest.json").read_text())
    for name, said in manifest["files"].items():
        data = Path(entry.folder, name).read_bytes()
        assert said == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
