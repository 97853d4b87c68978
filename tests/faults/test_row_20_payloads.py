"""Rows 20, 21 and 26: nothing that a stranger's files ask for is run."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from compressbench.config.boundary import child_environment, freeze
from compressbench.config.compose import compose_config
from compressbench.config.groups import config_folder
from compressbench.config.instantiate import instantiate
from compressbench.core.errors import UserError
from tests.end_to_end.running import run_here
from tests.faults.payload import PLANTED, QUIET, Payload, Pickled
from tests.faults.payloads import PAYLOADS, TARGETS

SAMPLE = {  # of each kind; the others take minutes
    "os.system in deep",
    "a target by a key",
    "a run of a stranger again",
    "hydra sets the list",
    "hydra sets callbacks",
    "logging in the defaults",
    "a file in the place of the basic launcher",
    "one of two in a grid",
    "replay: a tag inside",
    "replay: an option",
    "checkpoint torch .pt",
    "data .npy",
}


def completed(payload: Payload, arguments: list[str]) -> list[str]:
    """With what keeps a run small, unless the payload says otherwise."""
    if "replay" in arguments:
        return arguments
    given = {argument.partition("=")[0].lstrip("+~") for argument in arguments}
    return [*arguments, *(q for q in QUIET if q.partition("=")[0] not in given)]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(p, id=p.name, marks=[] if p.name in SAMPLE else [pytest.mark.long])
        for p in PAYLOADS
    ],
)
def test_row_20_nothing_of_a_stranger_runs(tmp_path, payload):
    work, marker = tmp_path / "work", tmp_path / "marker"
    work.mkdir()
    arguments = payload.plant(work, marker)
    done = run_here(completed(payload, arguments), work, tmp_path / "store")
    assert not marker.exists()
    assert not (work / "runs").exists()
    assert done.code == 1, done.err
    assert done.line.startswith("compressbench: ")


def test_row_20_the_payloads_would_work(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Pickled(marker))).close()
    assert marker.exists()


def test_row_20_a_variable_that_lets_checkpoints_run_code_is_refused(tmp_path):
    done = run_here(
        ["recipe=baseline", *QUIET], tmp_path, tmp_path / "store",
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
    )  # fmt: skip
    assert done.code == 1
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 allows checkpoints to run code" in done.line


def test_row_21_what_would_allow_a_target_is_said():
    with pytest.raises(UserError, match=r"_target_=os\.system is not allowed.*--allow=os\.\*"):
        instantiate({"_target_": "os.system"}, "model")


@pytest.mark.parametrize("target", TARGETS)
def test_row_21_what_no_recipe_is_made_of_is_no_target(tmp_path, monkeypatch, target):
    (tmp_path / "planted.py").write_text(PLANTED.replace("{marker}", str(tmp_path / "marker")))
    monkeypatch.syspath_prepend(tmp_path)
    for config in ({"_target_": target}, {"_target_": target, "_partial_": True}):
        with pytest.raises(UserError, match=r"_target_|not allowed"):
            instantiate(config, "model")
    assert not (tmp_path / "marker").exists()
    assert "planted" not in sys.modules


def test_row_26_the_command_line_may_set_what_is_hydras(tmp_path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    typed = ["+hydra.job.env_set.MINE=there", "hydra.run.dir=here", "hydra.verbose=false"]
    done = run_here(
        ["--config-dir=.", "+extra=mine", "recipe=baseline", "plan=true", *QUIET, *typed],
        tmp_path, tmp_path / "store",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "train" in done.out


def test_row_26_what_changes_the_environment_later_widens_nothing(monkeypatch):
    freeze()
    monkeypatch.setenv("COMPRESSBENCH_ALLOW", "os.* posix.*")
    with pytest.raises(UserError, match=r"os\.getcwd is not allowed"):
        instantiate({"_target_": "os.getcwd"})


def test_row_26_a_child_does_not_import_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text(PLANTED.replace("{marker}", str(tmp_path / "marker")))
    monkeypatch.chdir(tmp_path)
    freeze()
    imports = [sys.executable, "-c", "import colorsys, compressbench.core.errors"]
    subprocess.run(imports, env=child_environment(), check=True, capture_output=True)
    assert not (tmp_path / "marker").exists()
    trusting = {k: v for k, v in child_environment().items() if k != "PYTHONSAFEPATH"}
    subprocess.run(imports, env=trusting, check=True, capture_output=True)
    assert (tmp_path / "marker").exists(), "the payload would have worked"


def test_row_26_a_trial_is_composed_of_no_file_that_sets_what_is_hydras(tmp_path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "mine.yaml").write_text("# @package hydra.job\nchdir: true\n")
    with pytest.raises(UserError, match=r"hydra\.job\.chdir is set by a file"):
        compose_config(["+extra=mine", "trainer.threads=1"], (config_folder(), tmp_path))
