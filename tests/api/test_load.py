"""`compressbench.load`: a run folder as a torch model, a session and a report."""

from __future__ import annotations

import shutil
import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

import compressbench
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.results.report_file import read_report, write_report
from tests.api.conftest import Net, compress


@pytest.fixture(scope="session")
def named(store, tmp_path_factory):
    """A run of a model of the config."""
    folder = tmp_path_factory.mktemp("named") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSBENCH_STORE", str(store))
        short = {"trainer": "debug", "recipe.stages.train.epochs": 1, "model.hidden": [16],
                 "recipe.stages.quantize.bits": 4}  # fmt: skip
        return compress("mlp", "digits", overrides=short, folder=folder)


def test_the_model_and_the_session_agree(named, digits):
    run = compressbench.load(named.folder)
    assert run.report == named.report and run.path == named.path
    images = digits["test"][0]
    with torch.no_grad():
        own = run.model(images)
    logits = torch.from_numpy(run.session.run(None, {"input": images.numpy()})[0])
    assert torch.allclose(own, logits, atol=0.02), "but for what integer kernels round"
    assert float((own - own.mean(0)).abs().max()) > 0.1
    assert not run.model.training
    assert max(len(row.unique()) for row in run.model.layers[1].weight) <= 16, "4 bits"
    assert "\n" not in repr(run) and str(named.folder) in repr(run)


def test_a_module_in_hand_is_taken_again(shipped, trained_net, digits):
    run = compressbench.load(shipped.folder, Net())
    images, labels = digits["test"]
    with torch.no_grad(), warnings.catch_warnings(action="error"):
        accuracy = float((run.model(images).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(shipped.figures["test/accuracy"], abs=0.01)
    kept = {name: value for name, value in trained_net.state_dict().items() if "weight" in name}
    loaded = run.model.state_dict()
    errors = [float((loaded[n] - v).abs().max() / v.abs().max()) for n, v in kept.items()]
    assert 0 < max(errors) < 0.02, "on a grid of 8 bits"


def test_without_the_module_all_but_the_model_is_there(shipped, digits):
    run = compressbench.load(str(shipped.folder))
    assert run.session.run(None, {"input": digits["test"][0][:2].numpy()})[0].shape == (2, 10)
    with pytest.raises(UserError, match=r"Net is a module that was passed from Python"):
        run.model  # noqa: B018


class Steeper(Net):
    def forward(self, images):
        return super().forward(images) * 3


def test_other_code_is_told(shipped):
    run = compressbench.load(shipped.folder, Steeper())
    with pytest.warns(UserWarning, match=r"Net has other code or options than in the run"):
        run.model  # noqa: B018


def test_another_structure_is_refused(shipped):
    other = deepcopy(Net())
    other.head = nn.Linear(128, 11)
    for module in (other, nn.Linear(64, 10)):
        with pytest.raises(UserError, match=r"model is not the module of this run: ") as caught:
            compressbench.load(shipped.folder, module).model  # noqa: B018
        assert "\n" not in str(caught.value)


def test_a_module_has_no_use_where_the_config_builds_it(named):
    with pytest.raises(UserError, match=r"is built from its config; give none"):
        compressbench.load(named.folder, Net())


def test_the_command_line_cannot_replay_it(shipped, store):
    from tests.end_to_end.running import run_here

    done = run_here(["replay", str(shipped.folder / "recipe.yaml")], shipped.folder, store)
    assert done.code == 1
    assert "passed from Python" in done.line


def test_folders_without_a_finished_run(shipped, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no report.json there, so not the folder"):
        compressbench.load(tmp_path / "nowhere")
    copy = shutil.copytree(shipped.folder, tmp_path / "copy")
    (copy / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"copy: the run is finished, it has no model.onnx"):
        compressbench.load(copy)
    write_report({**read_report(copy), "status": "failed"}, copy)
    with pytest.raises(UserError, match=r"copy: the run is failed, it has no model.onnx"):
        compressbench.load(copy)
    (copy / "report.json").write_text("{")
    with pytest.raises(UserError, match=r"report.json: its digest differs"):
        compressbench.load(copy)
    changed = shutil.copytree(shipped.folder, tmp_path / "changed")
    (changed / "artifact" / "artifact.json").write_text("[]")
    with pytest.raises(CheckFailedError, match=r"artifact.json is not the file that the run wrote"):
        compressbench.load(changed)
