"""A run that is stopped: what it says, and that the same command goes on to the same end."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from random import Random

import pytest
import torch

from compressbench.training.fits import fit
from tests.end_to_end.running import (
    QUIET,
    Finished,
    command,
    environment,
    finished_run,
    read_run,
    run_here,
    stages_in,
)

FIT = ("recipe=baseline", "model=mlp", "recipe.stages.train.epochs=30", "checkpoint_seconds=0")
COMMAND = (*FIT, *QUIET)
STAGES = ("train", "prune", "finetune", "quantize")


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
        deadline = time.monotonic() + 60
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_fit_with_a_line(tmp_path, number, code):
    folder, store = tmp_path / "work", tmp_path / "store"
    folder.mkdir()
    done = signalled(number, folder, store)
    assert done.code == code
    assert done.err.strip() == (
        f"compressbench: interrupted ({number.name}): run the same command to resume"
    )
    assert read_run(folder).report["status"] == "killed"
    assert not stages_in(store)
    assert saved_epoch(store) == 3


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
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


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_any_moment_cost_no_finished_stage(digits_run, tmp_path, seed):
    """Over and over: in a fit, an export, a measurement, between them."""
    undisturbed, store, random = digits_run("prune_then_quant"), tmp_path / "store", Random(seed)
    arguments = [*undisturbed.arguments, "checkpoint_seconds=0"]
    finished: set[str] = set()
    for attempt in range(40):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = subprocess.Popen(
            command(*arguments), cwd=folder, env=environment(store),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=random.uniform(4, 16))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        assert process.returncode in (0, -9), err
        assert not err, "no damaged entry, no traceback"
        for name in finished:
            assert f"{name} done" not in out, "a finished stage ran again"
        finished |= {name for name in STAGES if f"{name} done" in out}
        if process.returncode == 0:
            break
    assert attempt > 0, "never killed"
    assert read_run(folder).onnx == undisturbed.onnx
