"""Collection: oldest use first, pinned and used entries stay, leftovers of the dead go."""

import os
import signal
import subprocess
import sys
import time

import pytest

from compressbench.core.errors import UserError
from compressbench.store import pins
from compressbench.store.collect import collect
from compressbench.store.entries import Store
from compressbench.store.processes import is_alive, process_token

DAY = 24 * 3600


def make(root, count, size=10_000):
    """`count` entries, the first used longest ago, made by a process that is gone."""
    store = Store(root)
    keys = []
    for number in range(count):
        entry, _ = store.get_or_build(
            {"kind": "stage", "n": number},
            lambda folder: (folder / "x").write_bytes(b"x" * size) and {},
        )
        os.utime(entry.folder / "manifest.json", (1000 + number, 1000 + number))
        keys.append(entry.key)
        for path in (root / "pins" / entry.key).glob("process-*"):
            path.unlink()
    return store, keys


def test_least_recently_used_go_until_the_rest_fits(tmp_path):
    store, keys = make(tmp_path, 5)
    os.utime(store.folder(keys[0]) / "manifest.json")  # the oldest is used again
    one = collect(store, 10**9, dry_run=True).kept_bytes / 5
    done = collect(store, int(one * 3.5))
    assert done.removed == (keys[1], keys[2])
    assert set(store.all_keys()) == {keys[0], keys[3], keys[4]}
    assert done.kept_bytes == pytest.approx(one * 3, abs=10)
    assert done.freed_bytes == pytest.approx(one * 2, abs=10)


def test_without_bounds_nothing_goes(tmp_path):
    store, _ = make(tmp_path, 2)
    assert collect(store).removed == ()
    assert len(list(store.all_keys())) == 2


def test_a_floor_of_free_space_that_no_disk_has_removes_all(tmp_path):
    store, keys = make(tmp_path, 3)
    assert collect(store, min_free_bytes=2**62).removed == tuple(keys)


def test_dry_run_says_the_same_and_does_nothing(tmp_path):
    store, keys = make(tmp_path, 3)
    said = collect(store, 0, dry_run=True)
    assert len(list(store.all_keys())) == 3
    assert collect(store, 0) == said
    assert said.removed == tuple(keys)


def test_pinned_survive_until_every_reason_is_gone(tmp_path):
    store, keys = make(tmp_path, 2)
    store.pin(keys[0], "front of sweep é")
    store.pin(keys[0], "by hand")
    assert sorted(pins.reasons(tmp_path, keys[0])) == ["by hand", "front of sweep é"]
    done = collect(store, 0)
    assert (done.removed, done.pinned) == ((keys[1],), 1)
    store.unpin(keys[0], "by hand")
    assert collect(store, 0).removed == ()
    store.unpin(keys[0])
    assert collect(store, 0).removed == (keys[0],)


def test_only_what_is_there_can_be_pinned(tmp_path):
    store, _ = make(tmp_path, 1)
    with pytest.raises(UserError, match="no entry"):
        store.pin("0" * 64, "front")


def test_what_a_live_process_has_read_survives_until_it_ends(tmp_path):
    store, keys = make(tmp_path, 1)
    code = (
        "import sys, pathlib; from compressbench.store.entries import Store\n"
        "assert Store(pathlib.Path(sys.argv[1])).read(sys.argv[2])\n"
        "print('read', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), keys[0]],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert reader.stdout.readline() == "read\n"
    assert collect(store, 0).removed == ()
    os.kill(reader.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10  # a killed child that nobody waited for is no user either
    while not collect(store, 0).removed and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(store.all_keys()) == []
    assert list((tmp_path / "pins").iterdir()) == []
    reader.communicate()


def test_a_reader_that_comes_between_gets_its_entry_back(tmp_path, monkeypatch):
    """The hold is seen after the rename: the entry returns to its place."""
    store, keys = make(tmp_path, 1)
    seen = iter([[], ["in use by process 1"]])
    monkeypatch.setattr(pins, "reasons", lambda root, key: next(seen))
    assert collect(store, 0).removed == ()
    assert Store(tmp_path).read(keys[0]) is not None


def test_leftovers_of_the_dead_go_those_of_the_living_stay(tmp_path):
    store, keys = make(tmp_path, 1)
    machine = process_token().partition("-")[0]
    tmp = tmp_path / "tmp"
    dead = [f"build-{keys[0]}-{machine}-{2**22 + 1}-5-aaaa", "trash-1", f"work-{'b' * 64}"]
    alive = [
        f"build-{keys[0]}-{process_token()}-bbbb",
        f"build-{keys[0]}-{'f' * 12}-1-5-cccc",  # of another machine, young
        f"work-{'a' * 64}",
        f"work-{'c' * 64}",
    ]
    for name in dead + alive:
        (tmp / name).mkdir()
        (tmp / name / "file").write_bytes(b"x" * 100)
    old = time.time() - 2 * DAY
    for name in (dead[2], alive[3]):
        os.utime(tmp / name / "file", (old, old))
        os.utime(tmp / name, (old, old))
    with store.lock("c" * 64):  # somebody builds this one right now
        assert collect(store).freed_bytes == 300
    assert sorted(p.name for p in tmp.iterdir()) == sorted(alive)


def test_quarantine_is_kept_for_a_day(tmp_path):
    store, keys = make(tmp_path, 1)
    (store.folder(keys[0]) / "x").write_bytes(b"y")
    assert store.read(keys[0]) is None
    collect(store, 0)
    (aside,) = (tmp_path / "quarantine").iterdir()
    old = time.time() - 2 * DAY
    for path in (*aside.iterdir(), aside):
        os.utime(path, (old, old))
    collect(store)
    assert list((tmp_path / "quarantine").iterdir()) == []


def test_a_damaged_entry_can_be_collected(tmp_path):
    store, keys = make(tmp_path, 1)
    (store.folder(keys[0]) / "manifest.json").unlink()
    assert collect(store, 0).removed == tuple(keys)


def test_no_store_is_an_empty_one(tmp_path):
    assert collect(Store(tmp_path / "none"), 0).removed == ()
    assert not (tmp_path / "none").exists()


def test_processes():
    token = process_token()
    machine, pid, start = token.split("-")
    assert is_alive(token, 10 * DAY)
    assert int(pid) == os.getpid()
    if start != "0":
        assert not is_alive(f"{machine}-{pid}-{int(start) - 1}", 0)  # the id was used again
    assert not is_alive(f"{machine}-{2**22 + 1}-1", 0)
    assert is_alive(f"{'0' * 12}-1-1", DAY / 2)  # on another machine
    assert not is_alive(f"{'0' * 12}-1-1", DAY * 2)
    assert not is_alive("nonsense", 0)
