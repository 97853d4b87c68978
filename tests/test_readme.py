"""Every command of the README runs as it stands there, in a folder that was empty."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
INSTALLS = "pip install -e"  # the continuous integration runs those lines as they are


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.M | re.S)


def commands(first_only: bool) -> list[str]:
    """Those of the blocks, in order; or the first of each block."""
    found = [[line for line in block.splitlines() if line.strip()] for block in blocks("bash")]
    lines = [line for block in found for line in (block[:1] if first_only else block)]
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


@pytest.mark.timeout(900)  # of two cores that other tests use, too
@pytest.mark.parametrize(
    "first_only", [True, pytest.param(False, marks=pytest.mark.long)], ids=["firsts", "all"]
)
def test_the_commands_of_the_readme(tmp_path, first_only):
    for name, text in named_files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "run.py").symlink_to(README.parent / "run.py")
    first, *rest = [command for command in commands(first_only) if command != "pytest"]
    assert len(rest) >= (5 if first_only else 14)
    cores = sorted(os.sched_getaffinity(0))
    run([first], cores[0], tmp_path)
    with ThreadPoolExecutor(2) as pool:  # the first one's training is in the store for the others
        halves = [(rest[::2], cores[0]), (rest[1::2], cores[-1])]
        for half in [pool.submit(run, half, core, tmp_path) for half, core in halves]:
            half.result()
    assert len(list((tmp_path / "runs").glob("*/*/report.json"))) >= (4 if first_only else 11)


def test_named_files_are_there():
    assert {"my_models.py", "my_conf/model/tiny.yaml", "my_conf/recipe/mine.yaml"} == set(
        named_files()
    )
