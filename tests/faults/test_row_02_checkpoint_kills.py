"""A kill while a checkpoint is saved, with TMPDIR on another file system: one of two loads."""

from __future__ import annotations

import builtins
import os
import signal
import tempfile

import torch

from compressbench.training.fits.checkpoints import load_checkpoint, save_checkpoint
from tests.faults.disks import small_disk

HOOKED = ((os, "fsync"), (os, "open"), (os, "replace"), (builtins, "open"), (torch, "save"))


def save_and_die(path, step):
    """In a child: save epoch 3, killed before the call number `step` of those that matter."""
    left = step

    def counted(function):
        def call(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for module, name in HOOKED:
        setattr(module, name, counted(getattr(module, name)))
    save_checkpoint({"epoch": 3, "weight": torch.ones(10_000)}, path)


def killed(path, step):
    child = os.fork()
    if child == 0:
        try:
            save_and_die(path, step)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_row_02_a_kill_while_a_checkpoint_is_saved_leaves_one_that_loads(tmp_path, monkeypatch):
    with small_disk(tmp_path / "other", "16k") as other:  # smaller than a checkpoint
        monkeypatch.setenv("TMPDIR", str(other))
        monkeypatch.setattr(tempfile, "tempdir", None)
        epochs = []
        for step in range(50):
            path = tmp_path / str(step) / "fit.ckpt"
            path.parent.mkdir()
            for epoch in (1, 2):
                save_checkpoint({"epoch": epoch, "weight": torch.zeros(10_000)}, path)
            dead = killed(path, step)
            state = load_checkpoint(path)
            epochs.append(state["epoch"])
            assert state["weight"].sum() == (10_000 if state["epoch"] == 3 else 0)
            if not dead:
                break
        assert not list(other.iterdir())
    assert epochs[0] == 2 and epochs[-1] == 3 and not dead
    assert len(epochs) > 5
