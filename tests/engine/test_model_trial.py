"""What cannot be trained or exported is refused before any training, in one line."""

from __future__ import annotations

import pytest
import torch

from compressbench.core import artifact as artifacts
from compressbench.core.errors import UserError
from compressbench.core.types import Runtime
from compressbench.data.digits import Digits
from compressbench.engine.context import RunContext
from compressbench.engine.executor import run
from compressbench.engine.model_trial import try_models
from compressbench.engine.plan import make_plan
from compressbench.engine.stage_job import build_model
from compressbench.store.entries import Store
from tests.engine import odd_models
from tests.engine.test_plan import FIT, STAGES

MODULE = "tests.engine.odd_models"
QUANTIZE = {
    "_target_": "compressbench.quantization.quantize.Quantize",
    "weight": {
        "_target_": "compressbench.quantization.rounding.nearest.Nearest",
        "ranges": {"_target_": "compressbench.quantization.observers.minmax.MinMax"},
    },
    "activation": None,
}


@pytest.fixture
def start(tmp_path, allow):
    """Plan a recipe for one of the odd models; returns the plan and the context of a run."""
    allow(f"{MODULE}.*")

    def planned(name, stages=None, checkpoint=None, **options):
        data, runtime = Digits(), Runtime(max_batches=2)
        model = {"_target_": f"{MODULE}.{name}", "checkpoint": checkpoint, **options}
        plan = make_plan(
            stages or {"train": STAGES["train"]}, model=model, dataset={}, data=data,
            runtime=runtime, seed=0,
        )  # fmt: skip
        return plan, RunContext(Store(tmp_path / "store"), data, {}, runtime)

    return planned


def refusal(start, name, **options) -> str:
    with pytest.raises(UserError) as refused:
        try_models(*start(name, **options))
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("TupleInTraining", "gives a tuple (a tensor [4, 10], a tensor [4, 8]) in training mode"),
        ("DictOutput", "gives a dict (logits: a tensor [2, 10], loss: nothing), but one tensor"),
        ("TwoInputs", "takes 2 inputs (x, scale), but models have one input"),
        ("Frozen", "cannot be trained: none of its parameters has requires_grad"),
        ("Detached", "cannot be trained: its logits have no gradient"),
        ("RandomInEval", "gives two answers to one input in eval mode"),
        ("NanOutput", "gives NaN or infinity on 4 training samples"),
        ("Half", "body.weight is bfloat16, but parameters must be float32"),
        ("DoubleLogits", "gives logits of float64"),
        ("scripted", "is a TorchScript module"),
        ("KeepsALambda", "cannot be copied: an attribute of it is a function that calls its own"),
        ("pruned_by_torch", "its layer body has a mask of torch.nn.utils.prune"),
        ("ForgetsToReturn", "train() or eval() of ForgetsToReturn does not return the model"),
        ("PlainList", "does not register (more['blocks'][1].0.weight): keep layers in nn.Mod"),
        ("PlainParameter", "does not register (one of shape [8]): keep"),
        ("MadeInForward", "more.weight is made in the first forward pass"),
        ("KeepsALock", "cannot be copied for its attribute body.lock: cannot pickle"),
    ],
)
def test_a_model_that_cannot_work_is_refused_in_one_line(start, name, words):
    line = refusal(start, name)
    assert line.startswith("model")
    assert words in line


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [e.__name__ for e in odd_models.ERRORS])
def test_any_error_of_the_users_code_names_its_line(start, error, training):
    line = refusal(start, "Broken", error=error, training=training)
    assert error in line
    assert "odd_models.py" in line
    assert "# the line of the message" in line
    assert ("in training mode" in line) == training


@pytest.mark.parametrize("error", [e.__name__ for e in odd_models.ERRORS])
def test_an_error_while_the_model_is_built_names_its_line(start, error):
    line = refusal(start, "CannotBeBuilt", error=error)
    assert line.startswith(f"model cannot be built: {error}")
    assert "# the line of the message" in line


def test_a_function_that_passes_its_options_on_gets_those_that_arrive(start):
    plan, _ = start("hub")
    assert plan[0].job.model == {"_target_": f"{MODULE}.hub", "num_classes": 10}
    with pytest.raises(UserError, match="unexpected keyword argument 'input_shape'"):
        start("hub", input_shape=[1, 8, 8])


def test_layers_that_are_kept_but_not_called_are_no_fault(start):
    try_models(*start("HiddenButUnused"))


def test_a_teacher_of_another_architecture_is_tried_too(start):
    own = {"_target_": f"{MODULE}.TupleInTraining"}
    stages = {"train": {**STAGES["train"], "model": own}, "other": STAGES["train"]}
    assert "recipe.stages.train.model gives a tuple" in refusal(start, "Plain", stages=stages)


def test_a_frozen_model_from_a_file_need_not_be_trained(start, tmp_path):
    path = tmp_path / "frozen.pt"
    torch.save(odd_models.Frozen([1, 8, 8], 10).state_dict(), path)
    try_models(*start("Frozen", checkpoint=str(path)))
    stages = {
        "train": STAGES["train"],
        "more": {"_target_": "compressbench.training.finetune.Finetune", **FIT},
    }
    assert "cannot be trained" in refusal(start, "Frozen", stages=stages, checkpoint=str(path))


def test_a_model_that_passed_is_not_tried_again(start):
    plan, context = start("AuxiliaryHead")
    told = []
    for _ in range(2):
        try_models(plan, context_with(context, told))
    assert len(told) == 1
    assert "trying model" in told[0]


def context_with(context, told):
    from dataclasses import replace

    return replace(context, progress=lambda done, total, text: told.append(text))


def test_a_refused_model_leaves_no_store(start, tmp_path):
    refusal(start, "TupleInTraining")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "name",
    ["AuxiliaryHead", "OptionalInput", "LayerDrop", "Lazy", "compiled", "parallel", "WeightNorm",
     "DeprecatedNorms", "CompiledMethod", "Recurrent"],
)  # fmt: skip
def test_it_trains_and_is_quantized(start, name):
    """And what is stored can be built again: `run` loads every stage from the store."""
    plan, context = start(name, stages={"train": STAGES["train"], "quantize": QUANTIZE})
    try_models(plan, context)
    steps = list(run(plan, context))
    inputs = Digits().spec.noise(3, torch.Generator().manual_seed(0))
    assert all(row.touched for row in steps[0].coverage if row.layer != "extra")
    for step in steps:
        entry = context.store.read(step.key)
        again = artifacts.load(entry.folder, build_model, step.key).model
        assert again(inputs).equal(step.artifact.model(inputs))
        assert not any("parametrizations" in n or "_orig_mod" in n for n in again.state_dict())


def test_frozen_and_unused_layers_are_said_to_be_so(start):
    plan, context = start("PartlyFrozen")
    rows = {row.layer: row for row in next(iter(run(plan, context))).coverage}
    assert {n: (r.touched, r.detail) for n, r in rows.items() if n in ("body", "lost")} == {
        "body": (0, "frozen"),
        "lost": (0, "unused: the output does not depend on it"),
    }
    assert rows["fc"].detail == "trained"
    assert 0 < rows["fc"].touched <= rows["fc"].total


def test_layers_from_a_checkpoint_are_not_said_to_be_trained(start, tmp_path):
    path = tmp_path / "plain.pt"
    torch.save(odd_models.Plain([1, 8, 8], 10).state_dict(), path)
    plan, context = start("Plain", checkpoint=str(path))
    rows = next(iter(run(plan, context))).coverage
    assert {(r.touched, r.detail) for r in rows} == {(0, "from the checkpoint")}


def test_the_graph_of_the_trial_serves_the_export(start, monkeypatch):
    """Tracing takes most of the time of both; also of a model whose parametrizations are folded."""
    from compressbench.export import translate

    traced = []
    to_graph = translate.to_graph
    monkeypatch.setattr(translate, "to_graph", lambda *a: traced.append(1) or to_graph(*a))
    plan, context = start("WeightNorm")
    try_models(plan, context)
    assert len(list(run(plan, context))) == len(traced) == 1
