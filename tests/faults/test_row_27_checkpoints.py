"""A fit's checkpoint is taken as it was saved, or not at all."""

from __future__ import annotations

import os
import shutil
from random import Random

import pytest
import torch
from torch import nn

from compressbench.core.checked_files import append_digest
from compressbench.tasks.classification import CLASSIFICATION
from compressbench.training.fits.checkpoints import load_checkpoint, save_checkpoint
from compressbench.training.fits.fit import CHECKPOINT, FIELDS, fit_
from compressbench.training.train import labels_loss
from tests.training.test_fit import context, net, same, schedule

FLIPS = 400


def state(number):
    weights = {"weight": torch.arange(40.0) + number, "count": torch.tensor(number)}
    return {"epoch": number, "model": weights, "history": {"train/loss": [0.5, 0.25]}}


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints: the last, of epoch 2, and the one before."""
    path = tmp_path / "work-key" / CHECKPOINT
    path.parent.mkdir()
    save_checkpoint(state(1), path)
    save_checkpoint(state(2), path)
    return path


def test_row_27_no_flipped_bit_is_taken(saved):
    content, before = saved.read_bytes(), saved.with_suffix(".previous").read_bytes()
    random = Random(0)
    for _ in range(FLIPS):
        damaged = bytearray(content)
        damaged[random.randrange(len(content))] ^= 1 << random.randrange(8)
        saved.write_bytes(damaged)
        assert load_checkpoint(saved)["epoch"] == 1, "the one before"
        assert saved.with_suffix(".previous").read_bytes() == before
    saved.write_bytes(content)
    assert load_checkpoint(saved)["epoch"] == 2


def test_row_27_with_both_damaged_the_fit_starts_anew(saved, caplog):
    for path in (saved, saved.with_suffix(".previous")):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert load_checkpoint(saved) is None
    assert "its digest differs): trying the one before" in caplog.text
    assert "starting anew" in caplog.text
    assert not list(saved.parent.iterdir())


def as_pickle(path):
    torch.save(state(3), path)


def as_garbage(path):
    path.write_bytes(b"\n")


def as_signed_garbage(path):
    path.write_bytes(b"garbage")
    append_digest(path, "/".join(path.absolute().with_suffix(".ckpt").parts[-3:]))


def as_folder(path):
    path.mkdir()
    (path / "file").write_text("")


def as_link(path):
    other = path.parent / "other"
    shutil.copy(path.parent / "spare", other)
    path.symlink_to(other)


ODD = {
    "a torch file without a digest": as_pickle,
    "garbage": as_garbage,
    "nothing": lambda path: path.touch(),
    "garbage with a digest": as_signed_garbage,
    "a folder": as_folder,
    "a pipe": os.mkfifo,
    "a link": as_link,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("suffix", [".ckpt", ".previous"])
def test_row_27_odd_content_is_passed_over_and_replaced(saved, odd, suffix):
    place = saved.with_suffix(suffix)
    place.rename(saved.parent / "spare")
    odd(place)
    save_checkpoint(state(3), saved) if suffix == ".previous" else None
    assert load_checkpoint(saved)["epoch"] == (1 if suffix == ".ckpt" else 3)
    save_checkpoint(state(4), saved)
    save_checkpoint(state(5), saved)
    assert load_checkpoint(saved)["epoch"] == 5
    saved.unlink()
    assert load_checkpoint(saved)["epoch"] == 4


def test_row_27_a_checkpoint_counts_for_its_own_stage_only(saved):
    other = saved.parent.with_name("work-other") / CHECKPOINT
    other.parent.mkdir()
    shutil.copy(saved, other)
    assert load_checkpoint(other) is None


def test_row_27_a_moved_store_keeps_its_checkpoints(tmp_path):
    path = tmp_path / "store" / "tmp" / "work-key" / CHECKPOINT
    path.parent.mkdir(parents=True)
    save_checkpoint(state(1), path)
    (tmp_path / "store").rename(tmp_path / "moved")
    assert load_checkpoint(tmp_path / "moved" / "tmp" / "work-key" / CHECKPOINT)["epoch"] == 1


def of_another_model():
    weights = nn.Linear(6, 2).state_dict()
    return {**{name: {} for name in FIELDS}, "epoch": 1, "step": 1, "model": weights}


@pytest.mark.parametrize(
    "odd", [state(1), {}, {"epoch": 3}, [1], of_another_model()],
    ids=["other fields", "nothing", "an epoch only", "a list", "another model"],
)  # fmt: skip
def test_row_27_a_fit_begins_anew_where_nothing_fits(tmp_path, odd):
    whole, again = net(), net()
    expected = fit_(
        whole, labels_loss(CLASSIFICATION, 0.0), schedule(1), context(tmp_path / "whole")
    )
    (tmp_path / "odd").mkdir()
    save_checkpoint(odd, tmp_path / "odd" / CHECKPOINT)
    assert (
        fit_(again, labels_loss(CLASSIFICATION, 0.0), schedule(1), context(tmp_path / "odd"))
        == expected
    )
    assert same(whole, again)
