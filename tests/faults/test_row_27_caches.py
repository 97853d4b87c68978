"""What a run wrote earlier and reads again is taken as it was written, or made anew."""

from __future__ import annotations

import os
from random import Random

import pytest
import torch

from compressbench.data import files
from compressbench.data.tensor_cache import cached_tensors
from compressbench.store.collect import collect
from compressbench.store.entries import Store
from compressbench.store.pins import reasons

TENSORS = {
    "images": torch.arange(32, dtype=torch.uint8).reshape(2, 4, 4),
    "labels": torch.tensor([1, 0]),
}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


def decoded(made):
    """The cached tensors; `made` grows by one whenever they are decoded."""
    return cached_tensors(
        {"dataset": "x"}, lambda: made.append(1) or TENSORS, lambda found: len(found) == 2
    )


def flipped(path, random):
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def test_row_27_no_flipped_bit_of_decoded_data_is_taken():
    random, made = Random(0), []
    decoded(made)
    (path,) = files.decoded_folder().glob("*.safetensors")
    for _ in range(150):
        flipped(path, random)
        found = decoded(made)
        assert found.keys() == TENSORS.keys()
        assert all(found[n].equal(t) and found[n].dtype == t.dtype for n, t in TENSORS.items())
    assert len(made) > 140, "a flip in the padding of the header changes nothing"


@pytest.mark.parametrize(
    "odd",
    [os.mkfifo, lambda path: path.mkdir(), lambda path: path.symlink_to("/dev/zero"),
     lambda path: path.symlink_to("nowhere"), lambda path: path.write_bytes(b"")],
    ids=["a pipe", "a folder", "a device", "a link to nothing", "nothing"],
)  # fmt: skip
def test_row_27_what_is_in_place_of_decoded_data_is_replaced(odd):
    decoded([])
    (path,) = files.decoded_folder().glob("*.safetensors")
    path.unlink()
    odd(path)
    made = []
    assert decoded(made)["labels"].equal(TENSORS["labels"])
    assert made == [1]
    assert decoded(made) and made == [1]


def test_row_27_no_flipped_bit_of_the_memory_of_file_hashes_is_taken(tmp_path):
    random, named = Random(0), {"a": tmp_path / "a", "b": tmp_path / "b"}
    for name, path in named.items():
        path.write_text(name)
    expected = files.describe(named)
    for _ in range(80):
        flipped(files.decoded_folder() / files.MEMO, random)
        assert files.describe(named) == expected


def test_row_27_a_damaged_pin_still_protects_its_entry(store):
    random = Random(0)
    entry, _ = store.get_or_build({"kind": "x"}, lambda folder: {})
    store.pin(entry.key, "front of größe")
    (pin,) = store.root.glob("pins/*/pin-*")
    whole = pin.read_bytes()
    for _ in range(60):
        flipped(pin, random)
        assert "a reason whose file is damaged" in reasons(store.root, entry.key)
        pin.write_bytes(whole)
    pin.unlink()
    pin.mkdir()
    assert "a reason whose file is damaged" in reasons(store.root, entry.key)
    assert collect(store, 0).removed == ()
