"""Row 22: YAML that grows or nests without end is refused at once, wherever it is read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from compressbench.config.compose import compose_config
from compressbench.config.groups import config_folder, options
from compressbench.config.recipe_file import read_recipe
from compressbench.core.errors import UserError
from tests.end_to_end.running import run_here

LEVELS = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
BOMBS = {
    "aliases": "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *LEVELS]),
    "aliases of maps": "a: &a {x: 1}\n"
    + "\n".join(f"{b}: &{b} {{p: *{a}, q: *{a}}}" for a, b in zip("abcdefghijklmnopqrst",
                                                               "bcdefghijklmnopqrstu",
                                                               strict=True)),
    "a circle": "a: &a [*a]",
    "merged keys": "a: &a {x: 1}\nb: &b {<<: [*a, *a], y: *a}\nc: {<<: *b}\nd: *nowhere",
    "open brackets": "a: " + "[" * 50_000,
    "brackets": "a: " + "[" * 200 + "]" * 200,
    "braces": "a: " + "{a: " * 5000,
    "dashes": "- " * 5000,
    "indents": "\n".join(" " * i + "a:" for i in range(500)),
    "many keys": "".join(f"k{i}: {i}\n" for i in range(20_000)),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_row_22_a_bomb_in_a_recipe_is_refused_at_once(tmp_path, bomb):
    path = tmp_path / "recipe.yaml"
    path.write_text(bomb)
    started = time.process_time()
    with pytest.raises(UserError) as refused:
        read_recipe(path)
    assert time.process_time() - started < 1
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def imported():
    """What is imported and read once in a process is no part of the time."""
    compose_config(["seed=1"], (config_folder(), Path(__file__).parent))


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_row_22_a_bomb_in_a_config_folder_is_refused_at_once(imported, tmp_path, bomb):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "bomb.yaml").write_text(bomb)
    folders = (config_folder(), tmp_path)
    started = time.process_time()
    with pytest.raises(UserError) as refused:
        compose_config(["+extra=bomb"], folders)
    assert time.process_time() - started < 1
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["aliases", "brackets"])
def test_row_22_the_command_line_refuses_a_bomb_in_one_line(tmp_path, name):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "bomb.yaml").write_text(BOMBS[name])
    done = run_here(
        ["--config-dir=.", "+extra=bomb", "recipe=baseline"], tmp_path, tmp_path / "store"
    )
    assert done.code == 1
    assert done.line.startswith("compressbench: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "value",
    ["[" * 3000 + "]" * 3000, "[" * 50_000, "{a:" * 1000 + "1" + "}" * 1000, "choice(" * 2000,
     "${" * 1000 + "a" + "}" * 1000],
    ids=["lists", "open", "maps", "calls", "interpolations"],
)  # fmt: skip
def test_row_22_a_value_that_nests_without_end_is_refused(tmp_path, value):
    done = run_here([f"recipe.stages.prune.skip={value}"], tmp_path, tmp_path / "store")
    assert done.code == 1
    assert "recipe.stages.prune.skip: nested deeper than 40 levels" in done.line


def test_row_22_no_file_is_opened_that_never_ends(tmp_path):
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "pipe.yaml")
    (tmp_path / "model" / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "model" / "mine.yaml").write_text("# my model\n")
    assert options("model", [Path(tmp_path)]) == {"mine": "my model"}
    for name in ("pipe", "zero"):
        with pytest.raises(UserError, match=f"model={name}: no such option"):
            compose_config([f"model={name}"], (config_folder(), tmp_path))
        (tmp_path / "recipe.yaml").unlink(missing_ok=True)
        (tmp_path / "recipe.yaml").symlink_to(tmp_path / "model" / f"{name}.yaml")
        with pytest.raises(UserError, match="no such file"):
            read_recipe(tmp_path / "recipe.yaml")
