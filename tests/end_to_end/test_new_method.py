"""A method of the user's own: one Python file and one YAML in a folder of theirs."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.end_to_end.running import Run, finished_run, run_here, write_recipe

CODE = '''
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Late:
    """The later a weight stands in its tensor, the more it counts."""

    factor: float = 1.0

    def __call__(self, layers, context):
        return {
            name: torch.arange(layer.weight.numel()).view_as(layer.weight) * self.factor
            for name, layer in layers.items()
        }
'''
YAML = "# the later the better\n_target_: late_weights.Late\nfactor: 1.0\n"


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "late_weights.py").write_text(CODE)
    (tmp_path / "conf" / "criterion").mkdir(parents=True)
    (tmp_path / "conf" / "criterion" / "late.yaml").write_text(YAML)
    return tmp_path


def test_a_criterion_is_one_file_and_one_yaml(mine, digits_run, digits_store):
    write_recipe(mine / "conf", "mine", "train", "prune")
    first = digits_run("baseline")
    more = [
        "recipe=mine", "--config-dir=conf", "--allow=late_weights.*",
        "criterion@recipe.stages.prune.criterion=late", "recipe.stages.prune.scope=layer",
    ]  # fmt: skip
    run: Run = finished_run([*first.arguments[1:], *more], mine, digits_store)
    assert run.hits == {"train": True, "prune": False}
    tensors = load_file(run.folder / "artifact" / "model.safetensors")
    masks = {n: m.ravel() for n, m in tensors.items() if n.endswith("weight_mask")}
    assert len(masks) == 10
    for name, mask in masks.items():
        gone = round(0.7 * mask.size)
        assert not mask[:gone].any(), name
        assert mask[gone:].all(), name
        assert not np.any(tensors[name.replace("weight_mask", "weight")].ravel()[:gone])

    assert "late" in run_here(["--help", "--config-dir=conf"], mine, digits_store).out
    (mine / "late_weights.py").write_text(CODE.replace("self.factor", "self.factor * 2"))
    plan = run_here([*first.arguments[1:], *more, "plan=true"], mine, digits_store)
    assert "prune: differs from" in plan.out
    assert "in: code" in plan.out
