"""Every stage on two processes: the same figures within noise, no hang, no half artifact."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compressbench.config.groups import config_folder, options
from tests.end_to_end.running import (
    QUIET,
    command,
    environment,
    few_epochs,
    files_in,
    finished_run,
    stages_in,
)

SMALL = ("recipe=quantize", "model=mlp", "recipe.stages.train.epochs=6")
TWO = ("trainer=ddp_cpu", "trainer.devices=2", "trainer.threads=1", "tracking=none")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run on two processes of training and quantization; its store."""
    folder, store = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("two_store")
    return finished_run([*SMALL, *TWO], folder, store), store


def test_two_processes_reach_the_accuracy_of_one(two, tmp_path):
    one = finished_run([*SMALL, *QUIET], tmp_path, tmp_path / "store")
    for name in ("train", "quantize"):
        ours, theirs = (run.stage(name)["figures"]["val/accuracy"] for run in (two[0], one))
        assert ours == pytest.approx(theirs, abs=0.06), name
        assert two[0].stage(name)["key"] != one.stage(name)["key"]


def test_two_processes_find_the_store_without_starting_any(two, tmp_path, monkeypatch):
    first, store = two
    monkeypatch.setattr("compressbench.engine.launcher.run_on_ranks", None)
    second = finished_run(first.arguments, tmp_path, store)
    assert set(second.hits.values()) == {True}
    assert second.onnx == first.onnx


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The rank processes of a run, as the kernel lists its children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        int(pid)
        for pid in children
        if "compressbench.engine.rank_process" in command_line(int(pid))
    ]


def command_line(pid: int) -> str:
    """Of a process that runs; empty for one that ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def in_a_fit(tmp_path) -> Iterator[tuple[subprocess.Popen[str], list[int], Path]]:
    """A run that trains on two processes: the run, its ranks, its store."""
    if not Path("/proc/self/task").exists():
        pytest.skip("needs Linux's /proc")
    store = tmp_path / "store"
    long = ("recipe=baseline", "model=mlp", "recipe.stages.train.epochs=20000")
    process = subprocess.Popen(
        command(*long, *TWO, "checkpoint_seconds=0"), cwd=tmp_path, env=environment(store),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while not list(store.glob("tmp/work-*/fit.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.1)
        ranks = ranks_of(process)
        assert len(ranks) == 2, process.poll()
        yield process, ranks, store
    finally:
        process.kill()


def test_a_rank_that_dies_ends_the_run_with_the_reason(tmp_path):
    with in_a_fit(tmp_path) as (process, ranks, store):
        os.kill(ranks[1], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "rank 1 was killed by signal 9; the other ranks were stopped" in err
    assert "Traceback" not in err
    assert not command_line(ranks[0]), "the other rank is gone"
    assert not stages_in(store)
    assert not [name for name in files_in(store) if name.startswith("tmp/build-")]


@pytest.mark.long
@pytest.mark.parametrize("recipe", sorted(options("recipe", [config_folder()])))
def test_every_recipe_runs_on_two_processes(digits_run, tmp_path, recipe):
    run = finished_run([f"recipe={recipe}", *TWO, *few_epochs(recipe)], tmp_path, tmp_path / "s")
    one = digits_run(recipe)
    ours, theirs = (r.report["stages"][-1]["figures"]["val/accuracy"] for r in (run, one))
    assert ours == pytest.approx(theirs, abs=0.08)


@pytest.mark.long
def test_two_processes_share_what_the_teacher_says(tmp_path):
    still = ("recipe=distill", "dataset.max_shift=0", *few_epochs("distill"))
    run = finished_run([*still, *TWO], tmp_path, tmp_path / "store")
    (note,) = run.stage("distill")["notes"]
    assert re.search(r"float32, once for each of 1,0\d\d images", note)
    assert run.stage("distill")["figures"]["val/accuracy"] > 0.8
