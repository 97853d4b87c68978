"""`compressbench doctor` as a command: what it prints, exits with, survives and leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from compressbench.cli.checks.finding import MARKS
from tests.cli.servers import silent_server
from tests.end_to_end.running import ROOT, command, environment, files_in, run_here, run_process

CHECKS = ["config", "libraries", "torch_build", "variables", "machine", "kernels", "folders",
          "store", "tracking", "storage"]  # fmt: skip
KEYS = {"check", "subject", "mark", "found", "fix"}


def broken_libraries(folder):
    """A PYTHONPATH with a torch that cannot be imported and an ONNX Runtime that crashes."""
    for name, code in (
        ("torch", "raise ImportError('libcudart.so.13: cannot open shared object file')"),
        ("onnxruntime", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(code + "\n")
    return os.pathsep.join([str(folder), str(ROOT)])


def found(document, check, subject=None):
    """The findings of a check, in order, or that about a subject."""
    of_check = [f for f in document["checks"] if f["check"] == check]
    return of_check if subject is None else next(f for f in of_check if f["subject"] == subject)


def test_it_survives_libraries_that_cannot_be_imported_and_says_so(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    paths = broken_libraries(tmp_path / "libraries")
    done = run_process(["doctor", "--json"], work, tmp_path / "store", PYTHONPATH=paths)
    document = json.loads(done.out)
    assert (done.code, done.err, document["mark"]) == (1, "", "broken")
    assert list(dict.fromkeys(f["check"] for f in document["checks"])) == CHECKS
    assert all(set(f) == KEYS and f["mark"] in MARKS for f in document["checks"])
    assert all(bool(f["fix"]) == (f["mark"] != "fine") for f in document["checks"])
    torch, kernels = found(document, "torch_build")[-1], found(document, "kernels")[-1]
    assert torch["mark"] == kernels["mark"] == "broken"
    assert "libcudart.so.13: cannot open shared object file" in torch["found"]
    assert "Segmentation fault" in kernels["found"]
    assert found(document, "store", "locks")["mark"] == "fine"
    assert files_in(tmp_path / "work") == []
    assert not (tmp_path / "store").exists()


@pytest.mark.long
def test_a_machine_that_runs_recipes_is_not_broken(tmp_path):
    done = run_process(["doctor", "tracking=none"], tmp_path, tmp_path / "store")
    assert (done.code, done.err) == (0, ""), done.out
    assert " 0 broken, in " in done.out.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("ending", [None, signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_never_answers_ends_it_in_time_and_nothing_is_left(tmp_path, ending):
    """Whether it ends by itself or is ended."""
    with silent_server() as port:
        url = f"tracking.url=http://user:hidden@127.0.0.1:{port}"
        started = time.monotonic()
        process = subprocess.Popen(
            command("doctor", "--json", "tracking=server", url),
            cwd=tmp_path, env=environment(tmp_path / "store"), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if ending is not None:
            time.sleep(1.5)
            process.send_signal(ending)
        out = process.communicate(timeout=30)[0]
    assert time.monotonic() - started < 16
    if ending is None:
        (server,) = found(json.loads(out), "tracking")
        assert (process.returncode, server["mark"]) == (1, "broken")
        assert "hidden" not in out
    time.sleep(4 if ending == signal.SIGKILL else 0)  # its checks end by themselves
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_a_run_would_refuse_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr("compressbench.cli.doctor._GROUPS", {"config": "config"})
    done = run_here(["doctor", "trainer.thread=2"], tmp_path, tmp_path / "store")
    assert done.code == 1
    assert "trainer.thread: no such key; did you mean trainer.threads?" in done.out


def test_settings_of_a_sweep_and_own_folders_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("compressbench.cli.doctor._GROUPS", {"config": "config"})
    (tmp_path / "own" / "tracking").mkdir(parents=True)
    mine = "# mine\n_target_: compressbench.tracking.trackers.NoTracking\n"
    (tmp_path / "own" / "tracking" / "mine.yaml").write_text(mine)
    given = ["doctor", "-m", "--config-dir", str(tmp_path / "own"), "tracking=mine"]
    done = run_here([*given, "recipe=prune,quantize"], tmp_path, tmp_path / "store")
    assert done.code == 0, done.out
    assert f"tracking=mine recipe=prune,quantize, from {ROOT / 'conf'} and " in done.out


@pytest.mark.parametrize("wrong", [["--jsn"], ["recipe"], ["--config-dir"]])
def test_wrong_usage_exits_with_2_and_checks_nothing(tmp_path, wrong):
    done = run_here(["doctor", *wrong], tmp_path, tmp_path / "store")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: compressbench doctor ")


def test_the_package_can_be_run_as_a_module(tmp_path):
    done = subprocess.run(
        [command()[0], "-m", "compressbench", "doctr"],
        cwd=tmp_path, env=environment(tmp_path, PYTHONPATH=str(ROOT)), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "compressbench: unknown command 'doctr'; did you mean 'doctor'?\n"
