"""A store that another user owns or that everyone may write is refused; a shared one is not."""

from __future__ import annotations

import os

import pytest

from compressbench.core.errors import UserError
from compressbench.core.owners import VARIABLE
from compressbench.store.entries import Store
from tests.end_to_end.running import run_here
from tests.faults.conftest import CHEAP

STRANGER = 12345
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
PARTS = {"kind": "stage", "stage": "Train"}


def build(folder):
    (folder / "x").write_bytes(b"x")
    return {}


@pytest.fixture
def store(tmp_path):
    """A store with one entry."""
    Store(tmp_path / "store").get_or_build(PARTS, build)
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def nobody_else_is_trusted(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def read(store):
    """In a process that has not read it before."""
    return Store(store.root).get_or_build(PARTS, build)[1]


def place(store, name):
    """The store, its folder of entries, an entry, or a file of it."""
    (entry,) = store.root.glob("entries/*/*")
    places = (
        store.root,
        entry.parents[1],
        entry.parent,
        entry,
        entry / "manifest.json",
        entry / "x",
    )
    return dict(zip(PLACES, places, strict=True))[name]


PLACES = ("store", "entries", "of its digits", "entry", "manifest", "file")


@AS_ROOT
@pytest.mark.parametrize("name", PLACES)
def test_row_31_what_another_user_owns_is_refused_unless_trusted(store, name, monkeypatch):
    path = place(store, name)
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(UserError, match=f"^{path} in the store .* belongs to user {STRANGER}, not"):
        read(store)
    assert not list((store.root / "quarantine").iterdir())
    monkeypatch.setenv(VARIABLE, f"7, {STRANGER}")
    assert read(store)


@pytest.mark.parametrize("name", PLACES)
def test_row_31_what_everyone_may_write_is_refused(store, name):
    path = place(store, name)
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(UserError, match=f"^{path} .* written by every user .*run chmod -R o-w"):
        read(store)
    path.chmod(path.stat().st_mode & ~0o002)
    assert read(store)


@AS_ROOT
def test_row_31_where_everyone_may_add_the_owner_of_each_file_counts(store):
    store.root.chmod(0o1777)
    assert read(store)
    os.chown(place(store, "entry"), STRANGER, STRANGER)
    with pytest.raises(UserError, match="belongs to user"):
        read(store)


def test_row_31_a_folder_for_new_entries_that_everyone_may_write_is_refused(store):
    (store.root / "tmp").chmod(0o777)
    with pytest.raises(UserError, match=r"/tmp in the store"):
        store.get_or_build({"kind": "new"}, build)


@AS_ROOT
def test_row_31_a_store_is_shared_with_a_group_of_this_user(store):
    path = place(store, "entry")
    os.chown(store.root, STRANGER, os.getegid())
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(UserError, match="belongs to user"):
        read(store)
    store.root.chmod(0o775)
    assert read(store)
    os.chown(store.root, STRANGER, STRANGER)
    with pytest.raises(UserError, match="belongs to user"):
        read(store)


def test_row_31_trusted_owners_are_user_ids(store, monkeypatch):
    monkeypatch.setenv(VARIABLE, "me")
    with pytest.raises(UserError, match=f"{VARIABLE} must be user ids such as 1000,1001, got 'me'"):
        read(store)


@AS_ROOT
def test_row_31_a_run_says_so_in_one_line(cheap_run, tmp_path):
    _, store = cheap_run
    os.chown(next(store.glob("entries/*/*/model.onnx")).parent, STRANGER, STRANGER)
    done = run_here(CHEAP, tmp_path, store)
    assert done.code == 1
    assert f"belongs to user {STRANGER}" in done.line
