"""A fit that is stopped twice: the same command goes on to the same end."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress

import pytest
import torch

from compressbench.training.fits import fit
from tests.end_to_end.running import (
    QUIET,
    Finished,
    command,
    environment,
    finished_run,
    run_here,
    stages_in,
)

FIT = ("recipe=baseline", "model=mlp", "recipe.stages.train.epochs=30", "checkpoint_seconds=0")
COMMAND = (*FIT, *QUIET)


def saved_epoch(store) -> int:
    """The epoch in the checkpoint of the fit that runs, 0 without one."""
    for path in store.glob("tmp/work-*/fit.ckpt"):
        with suppress(FileNotFoundError):  # for a moment there is only the one before
            return int(torch.load(path, weights_only=True)["epoch"])
    return 0


def kill(folder, store) -> int:
    """Start the run, and kill it as soon as it has saved five epochs more; its exit code."""
    before = saved_epoch(store)
    process = subprocess.Popen(
        command(*COMMAND), cwd=folder, env=environment(store),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while saved_epoch(store) < before + 5 and time.monotonic() < deadline:
            time.sleep(0.02)
            assert process.poll() is None, process.communicate()
    finally:
        process.kill()
    process.communicate()
    return process.returncode


def signalled(number: signal.Signals, folder, store) -> Finished:
    """Run here until the fit has saved its third epoch; there, this process gets a signal."""
    saves = []
    save = fit.save_checkpoint

    def save_and_signal(state, path):
        save(state, path)
        saves.append(path)
        if len(saves) == 3:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "save_checkpoint", save_and_signal)
        return run_here(COMMAND, folder, store)


def test_row_01_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    store = tmp_path / "store"
    folders = [tmp_path / name for name in ("asked", "killed", "resumed", "undisturbed")]
    for folder in folders:
        folder.mkdir()
    assert signalled(signal.SIGTERM, folders[0], store).code == 143
    assert kill(folders[1], store) == -9
    assert not stages_in(store)
    started = []
    resume = fit._Module.resume_
    monkeypatch.setattr(
        fit._Module,
        "resume_",
        lambda self, state: (started.append(state["epoch"]), resume(self, state)),
    )
    resumed = finished_run(COMMAND, folders[2], store)
    assert len(started) == 1
    assert 8 <= started[0] < 30
    undisturbed = finished_run(COMMAND, folders[3], tmp_path / "other store")
    assert len(started) == 1
    assert resumed.onnx == undisturbed.onnx
    history = [run.stage("train")["history"] for run in (resumed, undisturbed)]
    assert history[0] == history[1]
    assert not list(store.glob("tmp/work-*")), "the checkpoint goes when the stage is published"
