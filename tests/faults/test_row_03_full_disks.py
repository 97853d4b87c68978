"""A full disk anywhere is one line with path and bytes; nothing is half-written, and with room the
same command goes on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.end_to_end.running import Finished, run_here
from tests.faults.disks import resize, small_disk

QUICK = ("recipe=prune", "model=mlp", "trainer=debug", "trainer.threads=1", "tracking=none",
         "checkpoint_seconds=0")  # fmt: skip
SWEEP = ("-m", "search.n_trials=2", *QUICK, "recipe.stages.prune.sparsity=interval(0.3,0.6)")
FEW, MANY = ["4k", "24k"], ["8k", "12k", "16k", "36k", "44k", "60k", "80k", "100k", "200k", "1m"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """The store of a run, so that others have only to write their folders."""
    home = tmp_path_factory.mktemp("first")
    assert run_here(QUICK, home, home / "store").code == 0
    return home / "store"


def judge(done: Finished, disk: Path) -> None:
    """It worked, or it ended in one line about a file of the full disk; and nothing is half."""
    if done.code != 0:
        assert done.code == 1, done.err
        assert f"{disk}" in done.line
        assert "bytes" in done.line
        assert "free" in done.line
    assert not [path for path in disk.rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize("size", [*FEW, *(pytest.param(s, marks=pytest.mark.long) for s in MANY)])
def test_row_03_a_full_disk_of_the_run_folder_is_one_line(tmp_path, store, size):
    with small_disk(tmp_path / "runs", size) as disk:
        judge(run_here(QUICK, tmp_path, store), disk)
        resize(disk, "9m")
        assert run_here(QUICK, tmp_path, store).code == 0


@pytest.mark.long
@pytest.mark.parametrize("size", ["4k", "40k", "100k", "160k", "220k", "300k", "400k"])
def test_row_03_a_full_disk_of_the_store_is_one_line(tmp_path, size):
    with small_disk(tmp_path / "store", size) as disk:
        judge(run_here(QUICK, tmp_path, disk), disk)
        resize(disk, "9m")
        assert run_here(QUICK, tmp_path, disk).code == 0


@pytest.mark.long
@pytest.mark.parametrize("size", ["4k", "8k", "24k"])
def test_row_33_a_full_folder_of_temporary_files_is_one_line(tmp_path, monkeypatch, size):
    with small_disk(tmp_path / "tmp", size) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        judge(run_here(QUICK, tmp_path, tmp_path / "store"), disk)
        resize(disk, "9m")
        assert run_here(QUICK, tmp_path, tmp_path / "store").code == 0


@pytest.mark.long
@pytest.mark.parametrize("size", ["8k", "80k", "200k"])
def test_row_33_a_full_disk_of_a_sweep_is_one_line_and_the_sweep_goes_on(tmp_path, store, size):
    with small_disk(tmp_path / "sweeps", size) as disk:
        judge(run_here(SWEEP, tmp_path, store), disk)
        resize(disk, "20m")
        done = run_here(SWEEP, tmp_path, store)
        assert done.code == 0, done.err
