"""A torchvision that was built for another torch costs one line, not a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.end_to_end.running import QUIET, ROOT, files_in, run_process

REASON = "operator torchvision::nms does not exist"


def install(folder, code):
    """A torchvision in `folder`, with what makes it an installed one for other libraries."""
    (folder / "torchvision").mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").write_text(code)
    metadata = folder / "torchvision-0.28.0.dist-info"
    metadata.mkdir()
    text = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    (metadata / "METADATA").write_text(text)
    return os.pathsep.join([str(folder), str(ROOT)])


@pytest.fixture
def broken(tmp_path):
    """The PYTHONPATH with the very error that a CPU build of torch gives."""
    return install(tmp_path / "libraries", f"raise RuntimeError({REASON!r})\n")


def test_torchmetrics_does_import_it(broken):
    """Should this fail, the check that the other tests are about may go."""
    done = subprocess.run(
        [sys.executable, "-c", "import torchmetrics"],
        env={**os.environ, "PYTHONPATH": broken}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert REASON in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe=baseline", *QUIET],
        ["-m", "search=prune_quant", "search.n_trials=1", *QUIET],
    ],
    ids=["run", "search"],
)
def test_a_broken_one_is_named_with_the_remedy(broken, tmp_path, arguments):
    work = tmp_path / "work"
    work.mkdir()
    done = run_process(arguments, work, tmp_path / "store", PYTHONPATH=broken)
    assert done.code == 1
    assert done.line.startswith("compressbench: torchvision cannot be imported with torch ")
    assert REASON in done.line
    assert "pip uninstall torchvision" in done.line
    assert not any(name.startswith(("runs/", "sweeps/")) for name in files_in(work))


def test_what_trains_nothing_does_not_look(broken, tmp_path):
    for arguments in (["--help"], ["recipe=baseline", "plan=true", *QUIET]):
        done = run_process(arguments, tmp_path, tmp_path / "store", PYTHONPATH=broken)
        assert done.code == 0, done.err


def test_one_that_can_be_imported_passes(tmp_path):
    working = install(tmp_path / "libraries", "")
    code = "from compressbench.engine.environment import check_torchvision as check; check()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": working}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
