"""Sweeps from the command line: a front of real files; continued, joined, refused, stopped."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from compressbench.search.snapshot import read_sweep
from tests.end_to_end.running import ROOT, command, environment, files_in, run_here

TINY = ("-m", "recipe=quantize", "model=mlp", "trainer=debug", "trainer.threads=1",
        "tracking=none", "recipe.stages.train.epochs=1")  # fmt: skip
BITS, IMAGES = "recipe.stages.quantize.bits", "recipe.stages.quantize.calibration_images"
SPACE = (f"{BITS}=choice(2,4,8)", f"{IMAGES}=int(interval(16,64))", "search.name=tiny")


def trials_of(folder):
    return read_sweep(folder / "sweeps" / "tiny").trials


def test_a_sweep_ends_with_a_front_of_real_files_and_keeps_its_name(tmp_path):
    store = tmp_path / "store"
    known = f"search.enqueue=[{{{BITS}: 4, {IMAGES}: 32}}, {{{BITS}: 4, {IMAGES}: 32}}]"
    done = run_here([*TINY, *SPACE, "search.n_trials=3", known], tmp_path, store)
    assert done.code == 0, done.err
    assert re.search(r"tiny: [123] of 3 complete trials are on the front", done.out)
    first, low, high = trials_of(tmp_path)
    assert dict(first.settings) == {BITS: 4, IMAGES: 32}
    assert (low.settings[BITS], high.settings[BITS]) == (8, 2), "both corners"
    tested = [t for t in trials_of(tmp_path) if "test/accuracy" in t.figures]
    assert 1 <= len(tested) <= 3
    for trial in (first, low, high):
        folder = tmp_path / "sweeps" / "tiny" / "trials" / str(trial.number)
        assert {"model.onnx", "recipe.yaml", "predict.py", "artifact/model.safetensors"} <= set(
            files_in(folder)
        )
        report = json.loads((folder / "report.json").read_text())
        assert report["status"] == "finished"
        figures = [stage["figures"] for stage in report["stages"]]
        assert not [name for f in figures for name in f if name.startswith("test/")]
        assert figures[-1]["val/accuracy"] == trial.figures["val/accuracy"]
        assert (folder / "model.onnx").stat().st_size == trial.figures["size/onnx_bytes"]
    other = run_here([*TINY, SPACE[0], *SPACE[2:]], tmp_path, store)
    assert other.code == 1
    assert (
        f"search.name=tiny is already another sweep, which differs in: search.space.{IMAGES}"
        in other.line
    )
    assert len(trials_of(tmp_path)) == 3


MISTAKES = [
    (["recipe.stages.prune.sparsty=interval(0,0.5)"], r"no such key; did you mean recipe.stages"),
    (["recipe=quantize", "recipe.stages.prune.sparsity=interval(0,0.5)"], "no such key"),
    (["recipe=choice(prune,quantise)", "search.n_trials=3"], "recipe=quantise: no such option"),
    (["search=prune_qant"], "search=prune_qant: no such option; did you mean prune_quant?"),
    (["search.n_trials=3"], "the search space is empty: choose search=prune_quant"),
    (["search=prune_quant", "search.n_trials=0"], "search.n_trials must be .* got 0"),
    (["search=prune_quant", "search.objectives=['maximize val/f1']"], "no figure val/f1"),
    (["search=prune_quant", "search.storage=mysql://h/x"], "must be null or postgresql://"),
    (["search=prune_quant", "sampler@search.sampler=grid"], "a grid needs choices or a range"),
    (["recipe.stages.prune.sparsity=interval(0.5,1.5)"], r"sparsity must be .* got 1.5"),
    (["recipe.stages.quantize.bits=choice(4,9,8)", "search.seed=1"], r"bits must be .* got 9"),
    (["recipe.stages.train.epochs=interval(-1.0,3.0)"], r"epochs must be .* got -1"),
    (["recipe.stages.train.warmup=interval(0.1,1.5)"], r"warmup must be .* got 1.5"),
    (["seed=int(interval(0,9))", "trainer.threads=int(interval(1,2))"], "cannot be searched"),
    (["seed=int(interval(0,9))", "plan=true"], "plan=true is for a single run"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: str(v)[:60])
def test_a_mistake_is_one_line_before_anything_is_written(tmp_path, arguments, message):
    done = run_here(["-m", "tracking=none", *arguments], tmp_path, tmp_path / "store")
    assert done.code == 1
    assert re.search(message, done.line), done.line
    assert files_in(tmp_path) == []


def test_plain_lists_stay_hydras(tmp_path):
    done = run_here(["-m", "plan=true", "recipe=baseline", "model=mlp", "seed=0,1"], tmp_path,
                    tmp_path / "store")  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.count("nothing was run") == 2
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_continues_under_the_same_numbers(tmp_path, number, code):
    store, words = tmp_path / "store", [*TINY, *SPACE, "search.n_trials=5", "search.workers=2"]
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(store), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "[1/5]" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.strip().endswith("run the same command to resume")
    before = trials_of(tmp_path)
    assert 1 <= len(before) < 5
    assert not list(tmp_path.glob("sweeps/tiny/running/*")), "workers clean up"
    done = run_here(words, tmp_path, store)
    assert done.code == 0, done.err
    after = trials_of(tmp_path)
    assert [t.state for t in after] == ["complete"] * 5
    for old, new in zip(before, after, strict=False):
        assert old.settings.items() <= new.settings.items()


@pytest.mark.long
def test_trials_of_several_processes(tmp_path):
    words = [*TINY, *SPACE, "trainer.devices=2", "search.n_trials=2", "search.corners=false"]
    done = run_here(words, tmp_path, tmp_path / "store")
    assert done.code == 0, done.err
    assert [t.state for t in trials_of(tmp_path)] == ["complete"] * 2


@pytest.mark.long
def test_workers_as_jobs_of_a_launcher(tmp_path):
    """Submitit's local executor runs what its Slurm executor would send away."""
    pytest.importorskip("submitit", reason="pip install -e '.[cluster]'")
    words = [*TINY, *SPACE, "search.n_trials=4", "search.workers=2",
             "hydra/launcher=submitit_local"]  # fmt: skip
    done = run_here(words, tmp_path, tmp_path / "store")
    assert done.code == 0, done.err
    assert [t.state for t in trials_of(tmp_path)] == ["complete"] * 4
    logs = list(tmp_path.glob("sweeps/tiny/jobs/.submitit/*/*_log.out"))
    assert len(logs) == 2
    assert not (tmp_path / "sweeps" / "tiny" / ".worker.json").exists(), "may hold a password"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_chaos(tmp_path):
    script = ROOT / "experiments" / "chaos" / "chaos.py"
    space = [a for a in (*TINY[1:], *SPACE[:2]) if a != "tracking=none"]
    done = subprocess.run(
        [sys.executable, str(script), "--trials=6", "--workers=2", "--every=6", "--work",
         str(tmp_path / "chaos"), "--", *space], capture_output=True, text=True, check=False,
        env=environment(tmp_path / "unused"), timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 trials, none running, none twice, all figures the same" in done.stdout


@pytest.mark.long
def test_a_trial_that_cannot_work_is_infeasible_and_seeds_repeat_the_front(tmp_path):
    """A power of two needs folding: one of the four combinations is refused by its stage."""
    stage = "recipe.stages.quantize"
    with_batchnorm = [a.replace("=mlp", "=small_cnn") for a in TINY]
    words = [*with_batchnorm, f"{stage}.power_of_two=choice(false,true)", "search.name=tiny",
             f"{stage}.fold_batchnorm=choice(false,true)", f"{stage}.granularity=tensor",
             "search.seeds=2", "sampler@search.sampler=grid"]  # fmt: skip
    done = run_here(words, tmp_path, tmp_path / "store")
    assert done.code == 0, done.err
    states = {tuple(t.settings.values()): t for t in trials_of(tmp_path)}
    assert len(states) == 4
    refused = states.pop((True, False))
    assert refused.state == "infeasible"
    assert "fold_batchnorm" in refused.reason
    assert {t.state for t in states.values()} == {"complete"}
    front = [t for t in states.values() if "test/accuracy" in t.figures]
    assert front
    assert all(len(t.repeats) == 1 for t in front)
    assert any(t.repeats[0]["val/accuracy"] != t.figures["val/accuracy"] for t in front)
