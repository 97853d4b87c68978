"""The wheel alone: unpacked beside the installed libraries, used in an empty folder."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
import time
import zipfile
from configparser import ConfigParser
from contextlib import closing

import pytest

from tests.end_to_end.running import ROOT, environment, files_in, read_run, run_here

LICENSE = ROOT / "LICENSE"
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # its text, unchanged
SCRIPT = "import sys, compressbench.cli.main as c; print(c.__file__, file=sys.stderr); c.main()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder with what a wheel of this checkout holds."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    done = subprocess.run([*pip, str(ROOT)], capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr or "No module named pip" in done.stderr:
        pytest.skip("no pip, or no index to fetch the build backend from")
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("compressbench-*.whl")
    zipfile.ZipFile(path).extractall(folder / "unpacked")
    return folder / "unpacked"


def test_it_holds_every_config_and_no_tests(wheel):
    inside = set(files_in(wheel))
    wanted = {f"compressbench/conf/{name}" for name in files_in(ROOT / "conf")}
    wanted |= {
        f"compressbench/{n}"
        for n in files_in(ROOT / "compressbench")
        if n.endswith((".py", ".pyi"))
    }
    assert wanted <= inside
    assert "hydra_plugins/compressbench_pareto/pareto.py" in inside
    assert "hydra_plugins/__init__.py" not in inside, "other plugins share that name"
    assert "compressbench/py.typed" in inside
    (metadata,) = {name.partition("/")[0] for name in inside} - {"compressbench", "hydra_plugins"}
    assert metadata.endswith(".dist-info")
    assert (wheel / metadata / "licenses" / "LICENSE").read_bytes() == LICENSE.read_bytes()
    assert hashlib.sha256(LICENSE.read_bytes()).hexdigest() == APACHE_2
    scripts = ConfigParser()
    scripts.read(wheel / metadata / "entry_points.txt")
    assert scripts["console_scripts"]["compressbench"] == "compressbench.cli.main:main"


def run(wheel, folder, *arguments):
    """The console script of the wheel, in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=folder, env=environment(folder / ".compressbench", PYTHONPATH=str(wheel)),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_the_console_script_runs_in_an_empty_folder(wheel, tmp_path):
    tiny = ["recipe=baseline", "model=mlp", "trainer=debug", "recipe.stages.train.epochs=1"]
    shown = run(wheel, tmp_path, "--help")
    assert shown.stderr.strip() == str(wheel / "compressbench" / "cli" / "main.py")
    assert "prune_then_quant     Train, prune the smallest weights" in shown.stdout
    assert files_in(tmp_path) == []
    done = run(wheel, tmp_path, *tiny)
    assert done.returncode == 0, done.stderr
    made = read_run(tmp_path)
    assert made.onnx
    check_tracked(made, tmp_path, done.stdout)


def test_hydra_finds_our_sweeper_in_the_wheel(wheel, tmp_path):
    said = run(wheel, tmp_path, "-m", "search=prune_quant", "search.n_trials=0").stderr
    assert "compressbench: search.n_trials must be an integer in [1, 1000000], got 0" in said
    assert files_in(tmp_path) == []


def check_tracked(made, folder, said):
    """The run is in the local MLflow, which may finish a little later than the command."""
    assert "mlflow ui" in said or "is still being written" in said
    deadline = time.monotonic() + 60
    while (synced := run_here(["sync", str(made.folder)], folder, folder / "store")).code:
        assert time.monotonic() < deadline, synced.err
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        logged = dict(database.execute("select key, value from metrics").fetchall())
    assert logged["val/accuracy"] == made.stage("train")["figures"]["val/accuracy"]
    assert list(folder.glob("mlartifacts/**/model.onnx"))
