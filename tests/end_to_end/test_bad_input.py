"""What a user gets wrong costs one line and exit code 1, before anything is trained or written."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from tests.end_to_end.mistakes import MISTAKES
from tests.end_to_end.refusals import quiet
from tests.end_to_end.running import (
    QUIET,
    Finished,
    composed,
    files_in,
    run_here,
    run_process,
    write_recipe,
)


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES]
)
def test_a_mistake_is_refused(refused, arguments, message):
    if arguments == ["trainer=gpu"] and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    line = refused(*quiet(arguments))
    assert line.startswith("compressbench: ")
    assert re.search(message.replace("?", r"\?"), line), line


def test_a_misspelt_recipe_of_the_users_own_is_found(refused, tmp_path):
    mine = write_recipe(tmp_path / "conf", "gentle_pruning", "train", "prune")
    line = refused(mine, "recipe=gentle_prunning", *QUIET)
    assert "did you mean gentle_pruning?" in line


HINTON = {"_target_": "compressbench.training.losses.hinton.Hinton"}


def recipe_text(**changes: object) -> str:
    """The recipe.yaml of a run, with some sections replaced."""
    config = composed("recipe=baseline", "name=mine", *QUIET)
    config.pop("search")  # of sweeps, and in no run's file
    return yaml.safe_dump({**config, **changes})


def test_a_checkpoint_of_another_model_is_refused(refused, tmp_path):
    torch.save({"weight": torch.zeros(3, 3)}, tmp_path / "model.pt")
    line = refused(f"model.checkpoint={tmp_path / 'model.pt'}", *QUIET)
    assert "model.pt: missing: " in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "expected a mapping"),
        ("{", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("seed: 1", "checkpoint_seconds: is required"),
        ("\x00", "not valid YAML"),
        (
            recipe_text(tracking={"url": ["http://host/${oc.env:HOME}"]}),
            "interpolations are not allowed in a recipe, got 'http://host/${oc.env:HOME}'",
        ),
        (recipe_text(model=5), "model must be a section of options, got 5"),
        (recipe_text(recipe={"stages": 5}), "recipe.stages is empty"),
        (recipe_text(dataset={"root": "x"}), "dataset._target_ is required"),
        (
            recipe_text(dataset=HINTON),
            "_target_=compressbench.training.losses.hinton.Hinton is not a dataset",
        ),
        (recipe_text(tracking=HINTON), "is not a tracking"),
        (recipe_text(model=HINTON), "is not a torch.nn.Module"),
        ("seed: 1\n" * 50_000, "larger than 200,000 bytes"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(refused, tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    assert message in refused("replay", str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize("arguments", [["replay"], ["store"], ["store", "lost"], ["--nonsense"]])
def test_wrong_usage_has_an_exit_code_of_its_own(tmp_path, arguments):
    done = run_here(arguments, tmp_path, tmp_path / "store")
    assert done.code == 2
    assert "usage" in done.err
    assert "Traceback" not in done.err


def test_a_bug_of_ours_shows_its_traceback(tmp_path, monkeypatch):
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("made up")

    monkeypatch.setattr("compressbench.engine.prepare.make_plan", broken)
    done = run_here(["recipe=baseline", *QUIET], tmp_path, tmp_path / "store")
    assert done.code == 70
    assert "Traceback" in done.err
    assert "ZeroDivisionError: made up" in done.err


@pytest.mark.parametrize(
    ("arguments", "code"), [(["recipe=bseline"], 1), (["--nonsense"], 2)], ids=["user", "usage"]
)
def test_exit_codes_of_a_real_process(tmp_path, arguments, code):
    done: Finished = run_process(arguments, tmp_path, tmp_path / "store")
    assert done.code == code
    assert done.err.startswith("compressbench: ") or "usage" in done.err
    assert files_in(tmp_path) == []
