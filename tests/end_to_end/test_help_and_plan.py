"""What can be asked before anything runs."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib

import pytest

from compressbench import __version__
from compressbench.config.groups import GROUPS
from compressbench.config.overrides import COMMANDS
from tests.end_to_end.running import QUIET, ROOT, files_in, run_here, run_process


def yamls():
    return sorted(path for path in (ROOT / "conf").glob("*/*.yaml"))


def test_help_is_quick_and_names_every_option_with_its_purpose(tmp_path):
    started = time.monotonic()
    done = run_process(["--help"], tmp_path, tmp_path / "store")
    assert time.monotonic() - started < 3
    assert done.code == 0
    for path in yamls():
        purpose = path.read_text().partition("\n")[0].removeprefix("# ")
        assert re.search(rf"^  {path.stem} +{re.escape(purpose)}$", done.out, re.MULTILINE), path
    assert {path.parent.name for path in yamls()} == set(GROUPS)


def test_help_names_the_options_of_the_users_own_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# a model of my own\n_target_: mine.Net\n")
    for flags in ([f"--config-dir={tmp_path}"], ["--config-dir", str(tmp_path)]):
        done = run_here(["--help", *flags], tmp_path, tmp_path / "store")
        assert re.search("^  mine +a model of my own$", done.out, re.MULTILINE)


def test_help_names_every_command_and_comes_wherever_it_is_asked_for(tmp_path):
    page = run_here(["--help"], tmp_path, tmp_path / "store").out
    named = set(re.findall(r"^  compressbench (\w+) ", page, re.MULTILINE))
    assert named == set(COMMANDS)
    for arguments in (["-h"], ["recipe=prune", "--help"], ["-m", "-h"]):
        assert run_here(arguments, tmp_path, tmp_path / "store").out == page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_known_as_the_first_word(tmp_path, command):
    done = run_here([command, "--help"], tmp_path, tmp_path / "store")
    assert done.code == 0
    assert done.out.startswith(f"usage: compressbench {command} ")


def test_the_version_is_that_of_the_package_and_loads_nothing(tmp_path):
    probe = "import sys; from compressbench.cli.main import main; sys.argv[1:] = ['--version']\n"
    probe += "try: main()\nfinally: print(*sorted({'torch', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"compressbench {__version__}", ""]
    done = run_process(["recipe=prune", "--version"], tmp_path, tmp_path / "store")
    assert (done.code, done.out) == (0, f"compressbench {__version__}\n")
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("version")
    assert stated in (None, __version__)  # none where the build reads it from the package


def test_a_plan_of_an_empty_store_runs_and_writes_nothing(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("a stage ran")

    monkeypatch.setattr("compressbench.engine.executor.execute", refuse)
    done = run_here(["recipe=prune_then_quant", "plan=true", *QUIET], tmp_path, tmp_path / "store")
    assert done.code == 0, done.err
    for name in ("train", "prune", "finetune", "quantize"):
        assert re.search(rf"^{name} .* miss +[\d.]+ s", done.out, re.MULTILINE)
        assert f"{name}: the store has no result of {name.capitalize()} yet" in done.out
    assert float(re.search(r"about ([\d.]+) s", done.out)[1]) > 4
    assert files_in(tmp_path) == []
    assert not (tmp_path / "store").exists()


def test_a_plan_knows_what_is_stored(digits_run, digits_store, tmp_path):
    first = digits_run("quantize")
    before = files_in(digits_store)
    done = run_here([*first.arguments, "plan=true"], tmp_path, digits_store)
    for name in ("train", "quantize"):
        key = first.stage(name)["key"][:12]
        assert re.search(rf"^{name} .*{key} +hit +0\.0 s", done.out, re.MULTILINE)
    assert "about 0.0 s" in done.out
    assert [f for f in files_in(digits_store) if "entries" in f] == [
        f for f in before if "entries" in f
    ]
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("flag", ["--cfg", "-c"])
def test_the_composed_config_can_be_printed(tmp_path, flag):
    done = run_here([flag, "job", "recipe=quantize"], tmp_path, tmp_path / "store")
    assert done.code == 0
    assert "bits: 8" in done.out
