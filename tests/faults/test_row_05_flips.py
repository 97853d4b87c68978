"""One flipped bit anywhere in a real store or run folder: found, or without any effect."""

from __future__ import annotations

import shutil
from random import Random

import pytest

import compressbench
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.store.entries import Store
from compressbench.store.manifest import MANIFEST

LOADED = ("report.json", "model.onnx", "artifact/model.safetensors", "artifact/artifact.json")


def flip(path, random):
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def taken(store, entry, random):
    """Whether an entry with a flipped bit in one of its files is served with another content."""
    path = random.choice(sorted(p for p in entry.rglob("*") if p.is_file()))
    before = {name: text for name, text in contents(entry).items() if name.name != MANIFEST}
    manifest = Store(store).peek(entry.name).manifest
    whole = path.read_bytes()
    flip(path, random)
    found = Store(store).read(entry.name)
    if found is None:
        (aside,) = (store / "quarantine").iterdir()
        aside.rename(entry)
    served = {name: text for name, text in contents(entry).items() if name.name != MANIFEST}
    path.write_bytes(whole)
    return found is not None and (served != before or found.manifest != manifest)


def test_row_05_no_flipped_bit_of_the_store_is_taken(cheap_run):
    _, store = cheap_run
    random, entries = Random(0), sorted(store.glob("entries/*/*"))
    assert not [n for n in range(100) if taken(store, random.choice(entries), random)]


@pytest.mark.long
def test_row_05_no_flipped_bit_of_the_store_is_taken_of_many(cheap_run):
    _, store = cheap_run
    random, entries = Random(1), sorted(store.glob("entries/*/*"))
    assert not [n for n in range(1000) if taken(store, random.choice(entries), random)]


@pytest.mark.parametrize("name", LOADED)
def test_row_05_no_flipped_bit_of_a_run_folder_is_taken(cheap_run, tmp_path, name):
    run, _ = cheap_run
    random, folder = Random(0), shutil.copytree(run.folder, tmp_path / "run")
    whole = (folder / name).read_bytes()
    assert compressbench.load(folder).model
    for _ in range(25):
        flip(folder / name, random)
        with pytest.raises((UserError, CheckFailedError), match=name):
            compressbench.load(folder)
        (folder / name).write_bytes(whole)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_row_05_a_run_after_a_flipped_bit_ends_with_the_same_bytes(cheap_run, run_again, seed):
    first, store = cheap_run
    random = Random(seed)
    paths = sorted(p for p in store.rglob("*") if p.is_file() and p.stat().st_size)
    flip(random.choice(paths), random)
    second = run_again(store)
    assert second.onnx == first.onnx
    figures = [run.stage("train")["figures"] for run in (first, second)]
    exact = [n for n in figures[0] if not n.startswith("latency/")]
    assert [figures[0][n] for n in exact] == [figures[1][n] for n in exact]
