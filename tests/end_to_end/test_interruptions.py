"""A run that is stopped: what it says, and that the same command goes on to the same end."""

from __future__ import annotations

import signal
import subprocess
import time
from random import Random

import pytest
import torch
from running import QUIET, command, environment, files_in, finished_run, read_run, run_here

from compressbench.stages import fit

FIT = ("recipe=baseline", "model=mlp", "recipe.stages.train.epochs=60", "checkpoint_seconds=0")
COMMAND = (*FIT, *QUIET)
STAGES = ("train", "prune", "finetune", "quantize")
ENDINGS = {signal.SIGTERM: 143, signal.SIGKILL: -9}


def saved_epoch(store) -> int:
    """The epoch in the checkpoint of the fit that runs, 0 without one."""
    for path in store.glob("tmp/work-*/fit.*"):
        try:
            return int(torch.load(path, weights_only=True)["epoch"])
        except (FileNotFoundError, RuntimeError, EOFError):
            continue
    return 0


def stop_by(number: signal.Signals, folder, store) -> subprocess.CompletedProcess[str]:
    """Start the run, and stop it as soon as it has saved five epochs more."""
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
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return subprocess.CompletedProcess((), process.returncode, out, err)


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    store = tmp_path / "store"
    for number, code in ENDINGS.items():
        folder = tmp_path / number.name
        folder.mkdir()
        done = stop_by(number, folder, store)
        assert done.returncode == code, done.stderr
        assert not [name for name in files_in(store) if name.startswith("entries/")]
        if number is not signal.SIGKILL:
            assert f"{number.name}: the same command continues where it stopped" in done.stderr
            assert "Traceback" not in done.stderr
            (report,) = folder.glob("runs/*/*/report.json")
            assert '"status": "killed"' in report.read_text()
    started = []
    resume = fit._Module.resume_
    monkeypatch.setattr(
        fit._Module,
        "resume_",
        lambda self, state: (started.append(state["epoch"]), resume(self, state)),
    )
    folders = [tmp_path / "resumed", tmp_path / "undisturbed"]
    for folder in folders:
        folder.mkdir()
    resumed = finished_run(COMMAND, folders[0], store)
    assert len(started) == 1
    assert 10 <= started[0] < 60
    undisturbed = finished_run(COMMAND, folders[1], tmp_path / "other store")
    assert len(started) == 1
    assert resumed.onnx == undisturbed.onnx
    history = [run.stage("train")["history"] for run in (resumed, undisturbed)]
    assert history[0] == history[1]
    assert not list(store.glob("tmp/work-*")), "the checkpoint goes when the stage is published"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_a_line(tmp_path, monkeypatch, number, code):
    def interrupted(*arguments):
        signal.raise_signal(number)

    monkeypatch.setattr("compressbench.recipe.execute", interrupted)
    done = run_here(COMMAND, tmp_path, tmp_path / "store")
    assert done.code == code
    assert done.err.strip() == (
        f"compressbench: {number.name}: the same command continues where it stopped"
    )


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


@pytest.mark.parametrize("name", ["with a space", "größer-模型"])
def test_odd_letters_in_paths(tmp_path, digits_run, digits_store, name):
    digits_run("baseline")
    folder = tmp_path / name
    folder.mkdir()
    store = folder / "store"
    store.symlink_to(digits_store)
    first = digits_run("baseline")
    assert finished_run(first.arguments, folder, store).onnx == first.onnx
