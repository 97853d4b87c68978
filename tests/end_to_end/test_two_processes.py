"""Every stage on two processes: the same figures within noise."""

from __future__ import annotations

import re

import pytest

from compressbench.config.groups import config_folder, options
from tests.end_to_end.running import (
    QUIET,
    few_epochs,
    finished_run,
)

SMALL = ("recipe=quantize", "model=mlp", "recipe.stages.train.epochs=6")
TWO = ("trainer=ddp_cpu", "trainer.devices=2", "trainer.threads=1", "tracking=none")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run on two processes of training and quantization; its store."""
    folder, store = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("two_store")
    return finished_run([*SMALL, *TWO], folder, store), store


def test_two_processes_reach_the_accuracy_of_one(two, tmp_path):
    one = finished_run([*SMALL, *QUIET], tmp_path, tmp_path / "store")
    for name in ("train", "quantize"):
        ours, theirs = (run.stage(name)["figures"]["val/accuracy"] for run in (two[0], one))
        assert ours == pytest.approx(theirs, abs=0.06), name
        assert two[0].stage(name)["key"] != one.stage(name)["key"]


def test_two_processes_find_the_store_without_starting_any(two, tmp_path, monkeypatch):
    first, store = two
    monkeypatch.setattr("compressbench.engine.launcher.run_on_ranks", None)
    second = finished_run(first.arguments, tmp_path, store)
    assert set(second.hits.values()) == {True}
    assert second.onnx == first.onnx


@pytest.mark.long
@pytest.mark.parametrize("recipe", sorted(options("recipe", [config_folder()])))
def test_every_recipe_runs_on_two_processes(digits_run, tmp_path, recipe):
    run = finished_run([f"recipe={recipe}", *TWO, *few_epochs(recipe)], tmp_path, tmp_path / "s")
    one = digits_run(recipe)
    ours, theirs = (r.report["stages"][-1]["figures"]["val/accuracy"] for r in (run, one))
    assert ours == pytest.approx(theirs, abs=0.08)


@pytest.mark.long
def test_two_processes_share_what_the_teacher_says(tmp_path):
    still = ("recipe=distill", "dataset.max_shift=0", *few_epochs("distill"))
    run = finished_run([*still, *TWO], tmp_path, tmp_path / "store")
    (note,) = run.stage("distill")["notes"]
    assert re.search(r"float32, once for each of 1,0\d\d images", note)
    assert run.stage("distill")["figures"]["val/accuracy"] > 0.8
