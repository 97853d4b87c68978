"""Damage of every kind: found on read, set aside, built again."""

import logging
import os
import shutil

import pytest

from compressbench.store import manifest as manifests
from compressbench.store.entries import Store
from compressbench.store.keys import content_key

PARTS = {"schema": 1, "kind": "stage", "stage": "Prune", "config": {"sparsity": 0.5}}
OTHER = {**PARTS, "config": {"sparsity": 0.6}}


def build(folder):
    (folder / "a.bin").write_bytes(b"a" * 5000)
    (folder / "b.bin").write_bytes(b"b" * 5000)
    (folder / "sub").mkdir()
    (folder / "sub" / "c.txt").write_text("c")
    return {"figures": (1, 2.5), "name": "x"}


def flip(entry):
    data = bytearray((entry.folder / "a.bin").read_bytes())
    data[2500] ^= 1
    (entry.folder / "a.bin").write_bytes(data)


def swap(entry):
    a, b, c = (entry.folder / name for name in ("a.bin", "b.bin", "spare"))
    a.rename(c), b.rename(a), c.rename(b)


def link(entry):
    copy = entry.folder.parent / "copy"
    (entry.folder / "a.bin").rename(copy)
    (entry.folder / "a.bin").symlink_to(copy)


def link_folder(entry):
    moved = entry.folder.parent / "moved"
    (entry.folder / "sub").rename(moved)
    (entry.folder / "sub").symlink_to(moved)


def link_entry(entry):
    moved = entry.folder.parent / "moved"
    entry.folder.rename(moved)
    entry.folder.symlink_to(moved)


def edit_manifest(entry):
    path = entry.folder / "manifest.json"
    path.write_text(path.read_text().replace("2.5", "3.5"))


def rewrite(entry, **changes):
    """A manifest that is whole in itself, and lies."""
    content = {**entry.manifest, **changes}
    content.pop("schema")
    (entry.folder / "manifest.json").write_bytes(manifests.compose(**content))


def escape(entry):
    outside = entry.folder.parent / "a.bin"
    shutil.copy(entry.folder / "a.bin", outside)
    rewrite(entry, files={"../a.bin": entry.manifest["files"]["a.bin"]})


def absolute(entry):
    name = str(entry.folder / "a.bin")
    rewrite(entry, files={name: entry.manifest["files"]["a.bin"]})


def other_key(entry):
    rewrite(entry, key=content_key(OTHER))


DAMAGES = {
    "flipped bit": flip,
    "truncated": lambda e: os.truncate(e.folder / "a.bin", 4999),
    "grown": lambda e: os.truncate(e.folder / "a.bin", 5001),
    "deleted": lambda e: (e.folder / "sub/c.txt").unlink(),
    "swapped": swap,
    "link": link,
    "linked folder": link_folder,
    "linked entry": link_entry,
    "a folder in place of a file": lambda e: (
        (e.folder / "a.bin").unlink(),
        (e.folder / "a.bin").mkdir(),
    ),
    "manifest edited": edit_manifest,
    "manifest truncated": lambda e: os.truncate(e.folder / "manifest.json", 100),
    "manifest deleted": lambda e: (e.folder / "manifest.json").unlink(),
    "manifest no object": lambda e: (e.folder / "manifest.json").write_text("[1]"),
    "manifest nested": lambda e: (e.folder / "manifest.json").write_text("[" * 100_000),
    "manifest NaN": lambda e: (e.folder / "manifest.json").write_text('{"meta": NaN}'),
    "name outside": escape,
    "name absolute": absolute,
    "of another key": other_key,
}


@pytest.mark.parametrize("same_process", [False, True], ids=["next process", "same process"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_row_05_damage_is_found_set_aside_and_built_again(tmp_path, caplog, damage, same_process):
    store = Store(tmp_path)
    entry, _ = store.get_or_build(PARTS, build)
    damage(entry)
    store = store if same_process else Store(tmp_path)
    with caplog.at_level(logging.WARNING, "compressbench.store"):
        assert store.read(entry.key) is None
    assert entry.key[:12] in caplog.text
    assert "damaged" in caplog.text
    assert [p.name[:64] for p in (tmp_path / "quarantine").iterdir()] == [entry.key]
    again, hit = store.get_or_build(PARTS, build)
    assert not hit
    assert Store(tmp_path).read(entry.key) == again
    assert (again.folder / "a.bin").read_bytes() == b"a" * 5000


def test_row_05_two_entries_swapped_are_both_found(tmp_path):
    store = Store(tmp_path)
    a, b = (store.get_or_build(parts, build)[0] for parts in (PARTS, OTHER))
    spare = tmp_path / "spare"
    a.folder.rename(spare), b.folder.rename(a.folder), spare.rename(b.folder)
    assert Store(tmp_path).read(a.key) is None
    assert Store(tmp_path).read(b.key) is None


def test_row_05_a_late_finder_of_damage_leaves_the_new_entry_alone(tmp_path, monkeypatch):
    """Another process sets the damaged entry aside and builds it again while we still hash."""
    store = Store(tmp_path)
    entry, _ = store.get_or_build(PARTS, build)
    flip(entry)
    check = manifests.check_digests

    def slowly(folder, manifest):
        monkeypatch.setattr(manifests, "check_digests", check)
        assert not Store(tmp_path).get_or_build(PARTS, build)[1]
        raise manifests.DamagedError("as seen before")

    monkeypatch.setattr(manifests, "check_digests", slowly)
    assert Store(tmp_path).read(entry.key) is None
    assert Store(tmp_path).read(entry.key) is not None
