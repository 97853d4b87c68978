"""The same command again: nothing is computed twice, and what is computed again is the same."""

from __future__ import annotations

import re

import torch

from tests.end_to_end.running import (
    QUIET,
    few_epochs,
    files_in,
    finished_run,
    read_run,
    run_here,
    run_process,
)

RECIPE = "prune_then_quant"


def refuse(*arguments, **keywords):
    raise AssertionError("computed again")


def settled(report):
    """The figures of each stage, without what a clock measured."""
    return [
        {name: value for name, value in stage["figures"].items() if "latency" not in name}
        for stage in report["stages"]
    ]


def test_the_second_run_takes_everything_from_the_store(
    digits_run, digits_store, tmp_path, monkeypatch
):
    first = digits_run(RECIPE)
    for work in (
        "engine.executor.execute",
        "export.onnx.export_onnx",
        "measure.figures.measure_model",
    ):
        monkeypatch.setattr(f"compressbench.{work}", refuse)
    second = finished_run(first.arguments, tmp_path, digits_store)
    assert set(second.hits.values()) == {True}
    assert second.onnx == first.onnx
    assert [s["figures"] for s in second.report["stages"]] == [
        s["figures"] for s in first.report["stages"]
    ]


def test_a_replay_in_another_process_and_store_gives_the_same_bytes(digits_run, tmp_path):
    first = digits_run("quantize")
    done = run_process(["replay", str(first.folder / "recipe.yaml")], tmp_path, tmp_path / "store")
    assert done.code == 0, done.err
    assert "model.onnx has the same bytes as" in done.out
    second = read_run(tmp_path)
    assert set(second.hits.values()) == {False}
    assert second.onnx == first.onnx
    assert settled(second.report) == settled(first.report)
    digests = [r.report["files"]["artifact/model.safetensors"] for r in (first, second)]
    assert digests[0] == digests[1]


def test_another_quantizer_reruns_from_quantize_on(digits_run, digits_store, tmp_path):
    first = digits_run("quantize")
    arguments = [*first.arguments, "recipe.stages.quantize.bits=6"]
    plan = run_here([*arguments, "plan=true"], tmp_path, digits_store)
    assert "config.bits 8 → 6" in plan.out
    second = finished_run(arguments, tmp_path, digits_store)
    assert second.hits == {"train": True, "quantize": False}
    assert second.onnx != first.onnx


def test_other_weights_of_one_architecture_need_no_tracing(
    digits_run, digits_store, tmp_path, monkeypatch
):
    first = digits_run("baseline")
    monkeypatch.setattr("compressbench.export.translate.to_graph", refuse)
    arguments = ["recipe=prune", *first.arguments[1:], "recipe.stages.finetune.epochs=0.5",
                 "recipe.stages.prune.sparsity=0.35"]  # as no other test has pruned  # fmt: skip
    second = finished_run(arguments, tmp_path, digits_store)
    assert second.hits == {"train": True, "prune": False, "finetune": False}
    assert second.stage("finetune")["figures"]["val/agreement"] == 1.0


def test_another_seed_shares_nothing(digits_run, digits_store, tmp_path):
    first = digits_run("baseline")
    plan = run_here([*first.arguments, "seed=1", "plan=true"], tmp_path, digits_store)
    assert re.search(r"train: differs from \w+ in: seed", plan.out)


def test_a_sweep_runs_one_recipe_after_the_other(digits_run, digits_store, tmp_path):
    runs = [digits_run(name) for name in ("baseline", "quantize")]
    arguments = ["-m", "recipe=baseline,quantize", *QUIET, *few_epochs("baseline")]
    done = run_here(arguments, tmp_path, digits_store)
    assert done.code == 0, done.err
    found = sorted(tmp_path.glob("multirun/*/*/*/report.json"))
    assert [path.parent.name for path in found] == ["0", "1"]
    assert [(path.parent / "model.onnx").read_bytes() for path in found] == [r.onnx for r in runs]


def test_a_sweep_stops_at_a_job_that_is_refused(digits_store, tmp_path):
    arguments = ["-m", "recipe.stages.quantize.bits=1,9", "recipe=quantize", *QUIET]
    done = run_here(arguments, tmp_path, digits_store)
    assert done.code == 1
    assert "got 1" in done.line
    assert not [name for name in files_in(tmp_path) if name.endswith("report.json")]


def test_threads_are_part_of_the_key(digits_run, digits_store, tmp_path):
    first = digits_run("baseline")
    arguments = [a for a in first.arguments if not a.startswith("trainer.threads")]
    plan = run_here([*arguments, "trainer.threads=2", "plan=true"], tmp_path, digits_store)
    assert "runtime.threads 1 → 2" in plan.out


def test_the_run_folder_is_complete(digits_run):
    run = digits_run(RECIPE)
    wanted = {
        "report.json", "model.onnx", "model.onnx.zst", "model.json", "predict.py", "recipe.yaml",
        "artifact/model.safetensors", "artifact/artifact.json",
    }  # fmt: skip
    assert wanted <= set(files_in(run.folder))
    assert run.report["schema_version"] == 1
    assert f"file to ship: {run.folder / 'model.onnx'}" in run.out
    assert run.report["environment"]["versions"]["torch"] == torch.__version__
