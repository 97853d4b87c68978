"""What identifies a dataset: its class, options and contents, wherever they lie."""

import pytest
import torch

from compressbench.core.errors import UserError
from compressbench.core.types import Split
from compressbench.data.digits import Digits
from compressbench.engine.data_identity import contents_digest, identify
from compressbench.store.keys import content_key
from tests.engine import sloppy_data


def key(name="Grey", **options):
    config = {"_target_": f"tests.engine.sloppy_data.{name}", **options}
    return content_key(identify(config, getattr(sloppy_data, name)(**options)))


def test_the_same_data_have_the_same_identity():
    assert key() == key()
    assert key("Noisy") == key("Noisy"), "the seed is fixed"
    assert key("Unsteady") == key("Unsteady"), "no digest fits; the rest counts"


def test_each_class_and_each_option_counts_whatever_the_manifest_says():
    keys = [
        *map(key, ("Grey", "Centred", "Flipped", "Noisy", "Unsteady", "OtherMetric", "Shifted")),
        key(seed=1), key(mean=0.5), key(unused=1), key(unused="a"), key(unused=["a", "b"]),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_what_prepare_does_counts_under_one_name(monkeypatch):
    before = key()
    monkeypatch.setattr(sloppy_data.Grey, "prepare", lambda self, inputs: inputs.float() / 127)
    assert key() != before


@pytest.mark.parametrize("name", ["train", "validation"])
@pytest.mark.parametrize("part", ["inputs", "targets"])
def test_each_part_of_the_splits_counts(monkeypatch, name, part):
    before, contents = key(), contents_digest(sloppy_data.Grey())
    whole = sloppy_data.Grey.split

    def changed(self, which):
        split = whole(self, which)
        if which == name:
            {"inputs": split.inputs, "targets": split.targets}[part][-1] += 1
        return split

    monkeypatch.setattr(sloppy_data.Grey, "split", changed)
    assert key() != before
    assert contents_digest(sloppy_data.Grey()) != contents


def test_the_test_split_is_not_read(monkeypatch):
    whole = Digits.split

    def watched(self, name):
        assert name != "test"
        return whole(self, name)

    monkeypatch.setattr(Digits, "split", watched)
    assert identify({"_target_": "compressbench.data.digits.Digits"}, Digits())["samples"]


def test_a_word_that_is_also_a_file_is_an_option(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert key(unused="a") != key(unused="b")
    assert key(unused="./a") == key(unused="./b"), "a path: what is read from it counts"


def test_an_empty_split_is_identified():
    class Empty(sloppy_data.Grey):
        def split(self, name):
            return Split(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))

    assert identify({"_target_": "x.Empty"}, Empty())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Broken",
            r"^dataset: prepare fails on inputs \[8, 1, 8, 8\], torch.uint8: shape '\[-1, 7",
        ),
        ("OfTensors", "^dataset: spec.mean.0: Tensor has no canonical JSON.*plain numbers"),
    ],
)
def test_what_cannot_be_identified_is_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message):
        key(name)
