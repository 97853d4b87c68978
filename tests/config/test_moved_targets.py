"""Every old name leads to a class or function of today."""

from __future__ import annotations

import importlib

import pytest

from compressbench.config.groups import config_folder
from compressbench.config.instantiate import own_targets
from compressbench.config.moved_targets import MOVED, current_target, with_current_targets
from compressbench.config.recipe_file import read_recipe


@pytest.mark.parametrize("old", MOVED)
def test_what_has_moved_is_there(old):
    importlib.import_module(MOVED[old])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(old)


def test_names_of_today_and_of_users_stay():
    text = "".join(path.read_text() for path in config_folder().rglob("*.yaml"))
    names = [line.split()[-1] for line in text.splitlines() if "_target_:" in line]
    assert len(names) > 60
    assert [current_target(name) for name in names] == names
    assert (
        current_target("compressbench.stagesx.prune.Prune") == "compressbench.stagesx.prune.Prune"
    )
    assert current_target("my.criteria.Own") == "my.criteria.Own"


def test_a_recipe_file_is_read_with_the_names_of_today(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "recipe: {stages: {train: {_target_: compressbench.stages.train.Train},\n"
        "  quantize: {_target_: compressbench.stages.quantize.Quantize, activation: {\n"
        "    _target_: compressbench.quantizers.minmax.MinMax}, rules: [{layers: [first]}]}}}\n"
    )
    assert list(own_targets(read_recipe(path))) == [
        "compressbench.training.train.Train",
        "compressbench.quantization.quantize.Quantize",
        "compressbench.quantization.observers.minmax.MinMax",
    ]
    assert with_current_targets([1, "compressbench.losses.x"]) == [1, "compressbench.losses.x"]
