"""Killed, full, contended: real processes, real signals, real files."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from compressbench.core.errors import UserError
from compressbench.store.entries import Store
from compressbench.store.keys import content_key
from tests.faults.disks import make_read_only, small_disk

PARTS = {"kind": "stage", "stage": "Train", "config": {"epochs": 3}}
KEY = content_key(PARTS)
PRELUDE = """
import io, os, signal, sys, time
from pathlib import Path
from compressbench.store.entries import Store
PARTS = {"kind": "stage", "stage": "Train", "config": {"epochs": 3}}
store = Store(Path(sys.argv[1]))
def say(text):
    print(text, flush=True)
def build(folder):
    (folder / "sub").mkdir()
    (folder / "sub/model.bin").write_bytes(b"m" * 100_000)
    (folder / "outcome.json").write_text("{}")
    with open(store.root / "builds", "a") as log:
        log.write("x")
    return {"done": True}
"""


def start(root, body, *arguments):
    code = PRELUDE + textwrap.dedent(body)
    command = [sys.executable, "-c", code, str(root), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


def finish(process):
    said, _ = process.communicate(timeout=60)
    return process.returncode, said.split()


def build(folder):
    (folder / "sub").mkdir()
    (folder / "sub/model.bin").write_bytes(b"m" * 100_000)
    (folder / "outcome.json").write_text("{}")
    return {"done": True}


BLOCKED = """
def blocked(folder):
    build(folder)
    say("building")
    time.sleep(600)
store.get_or_build(PARTS, blocked)
"""
WAITING = "say(store.get_or_build(PARTS, build, on_wait=lambda: say('waiting'))[1])"


def test_row_02_killed_in_the_build(tmp_path):
    child = start(tmp_path, BLOCKED)
    assert child.stdout.readline() == "building\n"
    kill(child)
    store = Store(tmp_path)
    assert store.read(KEY) is None
    _, hit = store.get_or_build(PARTS, build)
    assert not hit
    assert list((tmp_path / "tmp").iterdir()) == []  # the dead builder's folder as well


def test_row_06_a_waiter_takes_over_when_the_builder_dies(tmp_path):
    builder = start(tmp_path, BLOCKED)
    assert builder.stdout.readline() == "building\n"
    waiter = start(tmp_path, WAITING)
    assert waiter.stdout.readline() == "waiting\n"
    kill(builder)
    assert finish(waiter) == (0, ["False"])
    assert Store(tmp_path).read(KEY).meta == {"done": True}


def test_row_06_a_waiter_gets_the_entry_of_the_builder(tmp_path):
    body = """
    def slow(folder):
        say("building")
        sys.stdin.readline()
        return build(folder)
    say(store.get_or_build(PARTS, slow)[1])
    """
    code = PRELUDE + textwrap.dedent(body)
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    builder = subprocess.Popen(command, **pipes, text=True)
    assert builder.stdout.readline() == "building\n"
    waiter = start(tmp_path, WAITING)
    assert waiter.stdout.readline() == "waiting\n"
    said, _ = builder.communicate("go\n", timeout=60)
    assert said == "False\n"
    assert finish(waiter) == (0, ["True"])
    assert (tmp_path / "builds").read_text() == "x"


def test_row_06_several_processes_build_once(tmp_path):
    body = """
    def slow(folder):
        time.sleep(0.3)
        return build(folder)
    entry, hit = store.get_or_build(PARTS, slow)
    say(f"{hit}{entry.meta['done']}")
    """
    children = [start(tmp_path, body) for _ in range(4)]
    said = sorted(finish(child)[1][0] for child in children)
    assert said == ["FalseTrue", "TrueTrue", "TrueTrue", "TrueTrue"]
    assert (tmp_path / "builds").read_text() == "x"


SUICIDE = """
left = int(sys.argv[2])
def counted(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
def hooked(folder):
    meta = build(folder)
    for name in ("fsync", "rename", "open", "rmdir", "unlink", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    io.open = counted(io.open)  # what Path.open calls
    return meta
store.scratch(store_key := sys.argv[3])
store.get_or_build(PARTS, hooked)
say("survived")
"""


def test_row_02_killed_at_every_step_of_the_publication(tmp_path):
    """The entry is absent or perfect, wherever the kill falls; the next process goes on."""
    absent = present = 0
    for step in range(100):
        root = tmp_path / str(step)
        code, said = finish(start(root, SUICIDE, step, KEY))
        if said == ["survived"]:
            break
        assert code == -signal.SIGKILL
        store = Store(root)
        was_there = store.folder(KEY).exists()
        entry = store.read(KEY)
        assert (entry is not None) == was_there  # never one that has to be set aside
        entry, hit = store.get_or_build(PARTS, build)
        assert hit == was_there
        assert (entry.folder / "sub/model.bin").read_bytes() == b"m" * 100_000
        assert not list(root.glob("tmp/build-*"))
        absent, present = absent + (not was_there), present + was_there
        shutil.rmtree(root)
    assert said == ["survived"]
    assert absent >= 6  # two files, the manifest, two folders, the rename
    assert present >= 1


LIMITED = """
import resource
def large(folder):
    (folder / "large.bin").write_bytes(b"m" * 200_000)
    return {}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from compressbench.core.errors import UserError
try:
    store.get_or_build(PARTS, large)
except UserError as error:
    say(error)
"""


def test_row_03_a_file_beyond_the_limit_of_the_process(tmp_path):
    code, said = finish(start(tmp_path, LIMITED))
    text = " ".join(said)
    assert code == 0
    assert str(tmp_path) in text
    assert "more than 100000 bytes" in text
    assert not list(tmp_path.glob("tmp/build-*"))
    assert Store(tmp_path).read(KEY) is None


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MB."""
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def write_plain(folder):
    (folder / "large.bin").write_bytes(b"m" * 2_000_000)


def write_safetensors(folder):
    from safetensors.numpy import save_file

    np = pytest.importorskip("numpy")
    save_file({"x": np.zeros(500_000, np.float32)}, folder / "x.safetensors")


def leave_no_room_for_the_manifest(folder):
    with (folder / "large.bin").open("wb", buffering=0) as file:
        try:
            while file.write(b"m" * 4096):
                pass
        except OSError:
            return


@pytest.mark.parametrize("write", [write_plain, write_safetensors, leave_no_room_for_the_manifest])
def test_row_03_disk_full_leaves_the_old_state_and_names_path_and_bytes(disk, write):
    store = Store(disk)
    old, _ = store.get_or_build({"kind": "old"}, build)

    def large(folder):
        write(folder)
        return {}

    with pytest.raises(UserError, match=r"full.*more than \d{6,} bytes") as caught:
        store.get_or_build(PARTS, large)
    assert str(disk) in str(caught.value)
    assert list((disk / "tmp").iterdir()) == []
    assert Store(disk).read(old.key) == old
    assert Store(disk).read(KEY) is None
    assert not store.get_or_build(PARTS, build)[1]  # there is room for this one


def serves_what_it_has_and_takes_no_more(root):
    assert Store(root).get_or_build(PARTS, build)[1]
    with pytest.raises(UserError, match="cannot be used"):
        Store(root).get_or_build({"kind": "new"}, build)


def test_row_19_a_store_on_a_read_only_file_system(disk):
    Store(disk).get_or_build(PARTS, build)
    make_read_only(disk)
    serves_what_it_has_and_takes_no_more(disk)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_row_19_a_store_without_permission_to_write(tmp_path):
    Store(tmp_path).get_or_build(PARTS, build)
    folders = [p for p in (tmp_path, *tmp_path.rglob("*")) if p.is_dir()]
    for folder in folders:
        folder.chmod(0o500)
    try:
        serves_what_it_has_and_takes_no_more(tmp_path)
    finally:
        for folder in folders:
            folder.chmod(0o700)
