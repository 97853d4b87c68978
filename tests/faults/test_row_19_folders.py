"""An output folder that cannot be used costs one line; odd letters in paths cost nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.running import command, environment, files_in, finished_run, run_here
from tests.faults.disks import make_read_only, small_disk

QUICK = ("recipe=baseline", "model=mlp", "trainer=debug", "trainer.threads=1", "tracking=none")
SWEEP = ("-m", "search=prune_quant", "search.n_trials=1", *QUICK[1:])


def refuses(arguments, folder: Path, store: Path, **more: str) -> str:
    before = files_in(folder)
    done = run_here(arguments, folder, store, **more)
    assert done.code == 1, done.err
    assert files_in(folder) == before
    return done.line


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("a file"), "Not a directory"),
        (lambda path: path.symlink_to("nowhere/at/all"), "File exists"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
    ids=["file", "dangling", "loop"],
)
def test_row_19_no_folder_at_the_place_of_runs_is_one_line(tmp_path, make, message):
    make(tmp_path / "runs")
    line = refuses(QUICK, tmp_path, tmp_path / "store")
    assert "runs" in line
    assert message in line


def test_row_19_a_read_only_folder_is_one_line(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        make_read_only(disk)
        given = (*QUICK, f"hydra.run.dir={disk}/run")
        assert f"{disk}/run: Read-only file system" in refuses(given, tmp_path, tmp_path / "store")
        assert "runs: Read-only file system" in refuses(QUICK, disk, tmp_path / "store")


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 3000], ids=["long name", "long path"])
def test_row_19_a_path_that_is_too_long_is_one_line(tmp_path, name):
    given = (*QUICK, f"hydra.run.dir={name}")
    assert "File name too long" in refuses(given, tmp_path, tmp_path / "store")
    assert "File name too long" in refuses(QUICK, tmp_path, tmp_path / name)


@pytest.mark.long
def test_row_19_a_store_that_is_a_file_is_one_line(tmp_path):
    store = tmp_path / "store"
    store.write_text("a file")
    assert f"the store {store} cannot be used" in refuses(QUICK, tmp_path, store)
    assert f"the store {store}/below cannot be used" in refuses(QUICK, tmp_path, store / "below")


@pytest.mark.long
@pytest.mark.parametrize("name", ["with a space", "größer-模型"])
def test_row_19_odd_letters_in_paths_change_nothing(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    runs = [finished_run(QUICK, where, where / "store") for where in (tmp_path, folder)]
    assert runs[0].onnx == runs[1].onnx


@pytest.mark.long
def test_row_19_a_sweep_in_an_unusable_folder_is_one_line(tmp_path):
    work, store = tmp_path / "work", tmp_path / "store"
    work.mkdir()
    (work / "sweeps").write_text("a file")
    assert "Not a directory" in refuses(SWEEP, work, store)
    with small_disk(tmp_path / "disk") as disk:
        make_read_only(disk)
        line = refuses((*SWEEP, f"search.folder={disk}/s"), work, store)
        assert "Read-only file system" in line


def test_row_19_a_working_folder_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD" && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command("recipe=baseline", *QUICK)],
        cwd=gone, env=environment(tmp_path / "store"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("compressbench: the working folder: No such file or directory")
    assert len(done.stderr.splitlines()) == 1
    assert not os.path.lexists(gone)
