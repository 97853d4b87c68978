"""Every command of the README runs as it stands there, in a folder that was empty.

By default one of each kind, while the others are composed and planned.
"""

import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end.running import run_here

README = Path(__file__).parents[2] / "README.md"
INSTALLS = "pip install -e"  # the continuous integration runs those lines as they are
METHODS = ("Pruning", "Quantization")  # sections whose commands differ in their options alone


def blocks() -> list[tuple[str, list[str]]]:
    """(section, commands) of each block of shell commands."""
    found = []
    for section in re.split(r"^## ", README.read_text(), flags=re.M):
        for block in re.findall(r"^```bash\n(.*?)^```", section, re.M | re.S):
            lines = [line for line in block.splitlines() if line.strip()]
            found.append((section.partition("\n")[0], lines))
    return found


def commands(kinds_only: bool) -> list[str]:
    """Those of the blocks, in order; or one of each kind: the first of each block."""
    found = [b[:1] if kinds_only else b for s, b in blocks() if not kinds_only or s not in METHODS]
    lines = [line for block in found for line in block]
    return [line.partition("&& ")[2] if line.startswith(INSTALLS) else line for line in lines]


def named_files() -> dict[str, str]:
    found = re.findall(r"^\*\*([\w./]+)\*\*\n\n```\w+\n(.*?)^```", README.read_text(), re.M | re.S)
    return dict(found)


def run(commands: list[str], core: int, folder: Path) -> None:
    """Run shell commands in turn on one core; each must end well."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "PYTHONPATH": str(folder)}
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True,
            timeout=240, check=False, preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def write_named_files(folder: Path) -> None:
    for name, text in named_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.timeout(900)  # of two cores that other tests use, too
@pytest.mark.parametrize(
    "kinds_only", [True, pytest.param(False, marks=pytest.mark.long)], ids=["kinds", "all"]
)
def test_the_commands_of_the_readme(tmp_path, kinds_only):
    write_named_files(tmp_path)
    (tmp_path / "run.py").symlink_to(README.parent / "run.py")
    first, *rest = [command for command in commands(kinds_only) if command != "pytest"]
    assert len(rest) >= (4 if kinds_only else 14)
    cores = sorted(os.sched_getaffinity(0))
    run([first], cores[0], tmp_path)
    with ThreadPoolExecutor(2) as pool:  # the first one's training is in the store for the others
        halves = [(rest[::2], cores[0]), (rest[1::2], cores[-1])]
        for half in [pool.submit(run, half, core, tmp_path) for half, core in halves]:
            half.result()
    assert len(list((tmp_path / "runs").glob("*/*/report.json"))) >= (2 if kinds_only else 11)


RECIPES = [c for c in commands(False) if " recipe=" in c and " -m " not in c and "plan" not in c]


@pytest.mark.parametrize("command", RECIPES)
def test_the_recipes_of_the_readme_can_be_planned(tmp_path, monkeypatch, command):
    write_named_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    done = run_here([*shlex.split(command)[2:], "plan=true"], tmp_path, tmp_path / "store")
    assert done.code == 0, done.err
    assert "nothing was run" in done.out


def test_named_files_are_there():
    assert {"my_models.py", "my_conf/model/tiny.yaml", "my_conf/recipe/mine.yaml"} == set(
        named_files()
    )
