"""A stage that chooses by measured time: keyed by the machine, and nothing after it goes astray."""

from __future__ import annotations

import shutil

import pytest
import torch

from compressbench.core.journal import Journal
from compressbench.core.types import Artifact, Measurement, Runtime
from compressbench.data.digits import Digits
from compressbench.engine import context, environment, executor
from compressbench.engine.context import RunContext
from compressbench.engine.plan import make_plan
from compressbench.engine.stage_job import build_model
from compressbench.store.entries import Store

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
FIT = {"epochs": 1, "batch_size": 64, "optimizer": SGD}
STAGES = {
    "train": {"_target_": "compressbench.training.train.Train", **FIT},
    "prune": {
        "_target_": "compressbench.pruning.prune_channels.PruneChannels",
        "criterion": {"_target_": "compressbench.pruning.criteria.l2.L2"},
        "latency": 0.6,
    },
    "finetune": {"_target_": "compressbench.training.finetune.Finetune", **FIT},
}
MODEL = {"_target_": "compressbench.models.mlp.Mlp", "hidden": [64], "checkpoint": None}
DATASET = {"_target_": "compressbench.data.digits.Digits"}
CAPPED = Runtime(max_batches=2)


def plan(**changed):
    stages = {**STAGES, "prune": {**STAGES["prune"], **changed}}
    return make_plan(stages, model=MODEL, dataset=DATASET, data=Digits(), runtime=CAPPED, seed=0)


def hidden(step) -> int:
    return next(
        m for m in step.artifact.model.modules() if isinstance(m, torch.nn.Linear)
    ).out_features


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the plan on a machine where `power` says how time follows from the hidden units."""
    store = Store(tmp_path / "store")
    measured = (tmp_path, Measurement({"size/download_bytes": 1.0, "size/onnx_bytes": 1.0}))
    monkeypatch.setattr(executor, "_measured", lambda *a, **k: measured)

    def go(power: float):
        def against(original, run_context, scratch, journal):
            whole = sum(p.numel() for p in original.model.parameters())
            return lambda a: (sum(p.numel() for p in a.model.parameters()) / whole) ** power

        monkeypatch.setattr(context, "_timed_against", against)
        run_context = RunContext(store, Digits(), DATASET, CAPPED)
        return store, list(executor.run(plan(), run_context))

    return go


def test_the_machine_counts_in_the_key_of_a_limit_of_time_alone(monkeypatch):
    def keys(**changed):
        return [p.key for p in plan(**changed)]

    before = keys(), keys(latency=None, macs=0.6)
    monkeypatch.setattr(environment, "_cpu_model", lambda: "another")
    after = keys(), keys(latency=None, macs=0.6)
    assert [a == b for a, b in zip(before[0], after[0], strict=True)] == [True, False, False]
    assert before[1] == after[1]
    assert [p.timed for p in plan()] == [False, True, True]
    assert [p.timed for p in plan(latency=None, macs=0.6)] == [False] * 3


def test_the_machine_counts_where_quantization_chooses_by_time_alone(monkeypatch):
    def last(**options):
        ranges = {"_target_": "compressbench.quantization.observers.minmax.MinMax"}
        rounding = "compressbench.quantization.rounding.nearest.Nearest"
        quantize = {
            "_target_": "compressbench.quantization.quantize.Quantize",
            "weight": {"_target_": rounding, "ranges": ranges}, "activation": ranges, **options,
        }  # fmt: skip
        stages = {"train": STAGES["train"], "quantize": quantize}
        return make_plan(
            stages, model=MODEL, dataset=DATASET, data=Digits(), runtime=CAPPED, seed=0
        )[-1]

    before = last().key, last(float_where_slower=True).key
    monkeypatch.setattr(environment, "_cpu_model", lambda: "another")
    after = last().key, last(float_where_slower=True).key
    assert before[0] == after[0]
    assert before[1] != after[1]
    assert [last().timed, last(float_where_slower=True).timed] == [False, True]


def test_a_cut_is_kept_and_another_one_takes_what_was_made_from_it_along(run, caplog):
    _, first = run(1.0)
    _, again = run(0.5)
    assert [step.hit for step in again] == [True] * 3, "the measured choice is what is stored"
    assert hidden(again[1]) == hidden(first[1])
    (chosen,) = [row for row in first[1].tables["limits"] if row["chosen"]]
    assert chosen["latency"] <= 0.6
    store, _ = run(1.0)
    shutil.rmtree(store.folder(first[1].key))
    _, other = run(0.5)
    assert [step.hit for step in other] == [True, False, False]
    assert hidden(other[1]) < hidden(first[1])
    assert hidden(other[2]) == hidden(other[1])
    assert "was made from another result of the stage before; set aside" in caplog.text
    _, last = run(1.0)
    assert [step.hit for step in last] == [True] * 3


@pytest.mark.long
def test_time_is_that_of_exported_files(tmp_path):
    """A hundred times the arithmetic takes several times as long; the same file takes as long."""
    run_context = RunContext(Store(tmp_path / "store"), Digits(), DATASET, CAPPED)

    def artifact(hidden: int) -> Artifact:
        config = {"_target_": "compressbench.models.mlp.Mlp", "hidden": [hidden, hidden],
                  "input_shape": [1, 8, 8], "num_classes": 10}  # fmt: skip
        return Artifact(build_model(config), config, (), frozenset())

    original = artifact(1000)
    share = context._timed_against(original, run_context, tmp_path, Journal())
    assert share(artifact(100)) < 0.5
    assert share(original) == 1.0
