"""`compressbench explain` finds a planted outlier, and its setting works when pasted."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.end_to_end.running import QUIET, run_here

NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """The first channel of `scaled` is 2000 times as large as the others, and never used."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], 12, 3, padding=1)
        self.body = nn.Conv2d(12, 12, 3, padding=1)
        self.fc = nn.Linear(11 * 16, num_classes)
        self.register_buffer("factors", torch.ones(12, 1, 1))
        self.factors[0] = 2000.0

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(torch.relu(self.body(x)), 2) * self.factors
        return self.fc(x[:, 1:].flatten(1))
'''
RECIPE = (
    "--allow=planted.*", "--config-dir=my_conf", "model=planted", "recipe=quantize",
    "recipe.stages.train.epochs=4", "trainer=cpu", "trainer.threads=1", "tracking=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder with the model and the run of it, and the store."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.py").write_text(NET)
    (folder / "my_conf" / "model").mkdir(parents=True)
    (folder / "my_conf" / "model" / "planted.yaml").write_text("# mine\n_target_: planted.Net\n")
    done = run_here([*RECIPE, "hydra.run.dir=run"], folder, folder / "store")
    assert done.code == 0, done.err
    return folder, done


def accuracies(run):
    report = json.loads((run / "report.json").read_text())
    return [stage["figures"]["val/accuracy"] for stage in report["stages"]]


def test_the_worst_is_named_and_the_pasted_setting_brings_the_accuracy_back(planted):
    folder, ran = planted
    exact, quantized = accuracies(folder / "run")
    assert quantized < exact - 0.2
    assert "average channel of :mul" in ran.out
    done = run_here(["explain", "run", "--allow=planted.*"], folder, folder / "store")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    first = next(line for line in lines if line.startswith(("activation", "weights")))
    assert first.split()[:2] == ["activation", ":mul"]
    setting = next(line for line in lines if line.startswith("setting: "))
    assert shlex.split(setting)[1:] == ['recipe.stages.quantize.float_activations=[":mul"]']
    command = next(line for line in lines if line.startswith("run: "))
    words = shlex.split(command.removeprefix("run: "))
    assert words[:2] == ["python", "run.py"] and "hydra.run.dir=run" not in words
    again = run_here([*words[2:], "hydra.run.dir=again"], folder, folder / "store")
    assert again.code == 0, again.err
    assert accuracies(folder / "again")[1] > exact - 0.03
    assert "average channel" not in again.out


def test_a_budget_of_time_and_images_is_kept(planted):
    folder, _ = planted
    words = ["explain", "run", "--allow=planted.*", "--images=7", "--seconds=1"]
    done = run_here(words, folder, folder / "store")
    assert done.code == 0, done.err
    assert "everything" in done.out


def test_what_cannot_be_explained_is_said_in_one_line(planted, tmp_path):
    folder, _ = planted
    store = folder / "store"
    nothing = run_here(["explain", "nowhere"], folder, store)
    assert (nothing.code, nothing.line) == (
        1, "compressbench: nowhere: no report.json there, so not the folder of a run"
    )  # fmt: skip
    lost = run_here(["explain", "run", "--allow=planted.*"], folder, tmp_path / "empty")
    assert lost.code == 1
    assert "run: the store no longer has the result of quantize: run compressbench" in lost.line
    foreign = run_here(["explain", "run"], folder, store)
    assert foreign.code == 1 and "planted.Net is not allowed" in foreign.line
    usage = run_here(["explain"], folder, store)
    assert usage.code == 2
    baseline = run_here(["recipe=baseline", *QUIET, "model=mlp", "recipe.stages.train.epochs=1",
                         "hydra.run.dir=float"], folder, store)  # fmt: skip
    assert baseline.code == 0
    plain = run_here(["explain", "float"], folder, store)
    assert plain.line.endswith("no stage of it is quantize or qat, so there is nothing to explain")
