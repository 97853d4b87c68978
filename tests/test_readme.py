"""Every command of the README runs as it stands there, in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
INSTALLS = "pip install -e"  # the continuous integration runs those lines as they are


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.M | re.S)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return [line.partition("&& ")[2] if line.startswith(INSTALLS) else line for line in lines]


def named_files() -> dict[str, str]:
    found = re.findall(r"^\*\*([\w./]+)\*\*\n\n```\w+\n(.*?)^```", README.read_text(), re.M | re.S)
    return dict(found)


def test_every_command_of_the_readme(tmp_path):
    for name, text in named_files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "run.py").symlink_to(README.parent / "run.py")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "PYTHONPATH": str(tmp_path)}
    ran = [command for command in commands() if command != "pytest"]
    assert len(ran) >= 12
    for command in ran:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert len(list((tmp_path / "runs").glob("*/*/report.json"))) >= 8


def test_named_files_are_there():
    assert {"my_models.py", "my_conf/model/tiny.yaml", "my_conf/recipe/mine.yaml"} == set(
        named_files()
    )
