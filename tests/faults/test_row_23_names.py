"""Names that could lead out of their folder, or that no file system takes, are refused."""

from __future__ import annotations

import pytest
import yaml

from tests.end_to_end.running import QUIET, composed

ODD = ["../x", "/tmp/x", "a/b", "..", ".", "x" * 300, "a\0b", "a\nb", "", " ", "~", "-x", "a.b"]


def recipe_file(folder, **changes) -> str:
    config = composed("recipe=baseline", "name=mine", "model=mlp", *QUIET)
    config.pop("search")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}))
    return str(path)


@pytest.mark.parametrize("name", ODD, ids=repr)
def test_row_23_odd_names_of_stages_are_refused(refused, tmp_path, name):
    train = composed("recipe=baseline", "model=mlp")["recipe"]["stages"]["train"]
    line = refused("replay", recipe_file(tmp_path, recipe={"stages": {name: train}}))
    assert "the name of a stage must be letters" in line
    assert "\0" not in line


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a\nb", "", " "], ids=repr)
def test_row_23_odd_names_of_runs_are_refused(refused, tmp_path, name):
    assert "name must be" in refused("replay", recipe_file(tmp_path, name=name))


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".", "x" * 300], ids=repr)
def test_row_23_odd_names_of_sweeps_are_refused(refused, name):
    search = ("-m", "search=prune_quant", "search.n_trials=1", f"search.name='{name}'")
    assert "search.name must be letters" in refused(*search, "model=mlp", *QUIET)


@pytest.mark.parametrize("name", ["../resnet20", "/etc/passwd", "x" * 300], ids=repr)
@pytest.mark.parametrize("group", ["model", "recipe", "dataset", "trainer"])
def test_row_23_odd_names_of_config_files_are_refused(refused, group, name):
    given = [a for a in QUIET if not a.startswith(f"{group}=")]
    assert refused(f"{group}={name}", *given)
