"""Commands of the README and of docs/ run as they stand there, in a folder that was empty.

By default one of each kind; the others are planned in test_docs.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.documented import (
    README,
    ROOT,
    kind,
    one_of_each_kind,
    runnable,
    write_named_files,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A reader's folder: `run.py`, the files that the pages name, and what commands leave."""
    folder = tmp_path_factory.mktemp("reader")
    write_named_files(folder)
    (folder / "run.py").symlink_to(ROOT / "run.py")
    return folder


def run(command: str, folder: Path) -> None:
    """Run a shell command on one core; it must end well."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    modules = f"{folder}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PATH": tools, "PYTHONPATH": modules}
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True,
        timeout=270, check=False, preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("command", one_of_each_kind())
def test_one_command_of_each_kind_runs(folder, command):
    reports = len(list(folder.glob("runs/*/*/report.json")))
    run(command, folder)
    ran = kind(command.split(" && ")[0]) in ("recipe", "own code")
    assert len(list(folder.glob("runs/*/*/report.json"))) == reports + ran


@pytest.mark.long
@pytest.mark.parametrize("command", [c for c in runnable() if c not in one_of_each_kind()])
def test_the_other_commands_run(folder, command):
    run(command, folder)


def test_the_readme_is_short_and_has_both_commands():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert "```bash\npip install -e . && python run.py recipe=prune_then_quant\n```" in text
    assert "```bash\npip install -e '.[dev]' && pytest\n```" in text


def test_the_kinds_are_those_that_take_paths_of_their_own():
    kinds = {kind(line.split(" && ")[0]) for line in one_of_each_kind()}
    assert kinds == {"recipe", "doctor", "help", "search", "own code", "store", "sync"}
