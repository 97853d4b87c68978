"""Plans: keys change with what they must change with, and with nothing else."""

import copy

import pytest

from compressbench.core.errors import UserError
from compressbench.core.types import Runtime
from compressbench.data.digits import Digits
from compressbench.engine import estimate
from compressbench.engine.plan import make_plan
from compressbench.store.entries import Store
from compressbench.store.explain import explain
from tests.engine import sloppy_data

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
FIT = {"epochs": 1, "batch_size": 32, "optimizer": SGD}
LOSS = {"_target_": "compressbench.training.losses.hinton.Hinton"}
QAT = {
    "_target_": "compressbench.quantization.qat.QuantizeAware",
    "weight": {"_target_": "compressbench.quantization.trained.lsq.Lsq"},
    "activation": None,
    "ranges": {"_target_": "compressbench.quantization.observers.minmax.MinMax"},
    "loss": None,
    "teacher": None,
    **FIT,
}
STAGES = {
    "train": {"_target_": "compressbench.training.train.Train", **FIT},
    "prune": {
        "_target_": "compressbench.pruning.prune.Prune",
        "criterion": {"_target_": "compressbench.pruning.criteria.magnitude.Magnitude"},
        "sparsity": 0.5,
    },
    "distill": {
        "_target_": "compressbench.training.distill.Distill",
        "teacher": "train",
        "loss": LOSS,
        **FIT,
    },
}
MODEL = {"_target_": "compressbench.models.mlp.Mlp", "hidden": [8], "checkpoint": None}
DATASET = {"_target_": "compressbench.data.digits.Digits"}


def plan(stages=STAGES, model=MODEL, runtime=None, seed=0, data=None):
    return make_plan(
        stages, model=model, dataset=DATASET, data=data or Digits(), runtime=runtime or Runtime(),
        seed=seed,
    )  # fmt: skip


def on(name, **options):
    """The plan of STAGES on a dataset of the module `sloppy_data`."""
    dataset = {"_target_": f"tests.engine.sloppy_data.{name}", **options}
    data = getattr(sloppy_data, name)(**options)
    return make_plan(STAGES, model=MODEL, dataset=dataset, data=data, runtime=Runtime(), seed=0)


def keys(**options):
    return [p.key for p in plan(**options)]


def changed(path, value):
    tree = copy.deepcopy(STAGES)
    node = tree
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return tree


def test_the_same_plan_has_the_same_keys():
    assert keys() == keys(stages=copy.deepcopy(STAGES), data=Digits())


@pytest.mark.parametrize(
    ("path", "value", "first"),
    [
        (("train", "epochs"), 2, 0),
        (("train", "optimizer", "lr"), 0.2, 0),
        (("prune", "sparsity"), 0.6, 1),
        (("prune", "criterion", "_target_"), "compressbench.pruning.criteria.l2.L2", 1),
        (("distill", "loss", "temperature"), 2.0, 2),
    ],
)
def test_a_change_moves_its_stage_and_those_after(path, value, first):
    before, after = keys(), keys(stages=changed(path, value))
    assert [a == b for a, b in zip(before, after, strict=True)] == [i < first for i in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"model": {**MODEL, "hidden": [9]}},
        {"runtime": Runtime(threads=2)},
        {"data": Digits(split_seed=1)},
        {"data": Digits(max_shift=0)},
    ],
)
def test_what_all_stages_depend_on_moves_all(options):
    assert not set(keys()) & set(keys(**options))


def test_two_datasets_of_one_module_share_no_stage():
    """Their manifests are the same, and so are their options."""
    names = ("Grey", "Centred", "Flipped", "OtherMetric")
    found = [planned.key for name in names for planned in on(name)]
    assert len(set(found)) == len(names) * len(STAGES)


def test_what_differs_between_two_datasets_is_named(tmp_path):
    store = Store(tmp_path)
    store.get_or_build(on("Grey")[0].parts, lambda folder: {})
    said = explain(store, on("Centred")[0].parts)
    assert said.partition(" in: ")[2] == (
        "data.samples.train.prepared; data.samples.validation.prepared; "
        "data.target tests.engine.sloppy_data.Grey → tests.engine.sloppy_data.Centred"
    )
    assert "data.options.unused absent → 3" in explain(store, on("Grey", unused=3)[0].parts)


def test_a_teacher_is_a_parent():
    distill = plan()[2]
    assert distill.parents == {"model": "prune", "teacher": "train"}


def test_a_stage_with_a_loss_of_its_own_has_a_teacher_or_neither():
    alone = plan(stages=changed(("distill",), QAT))[2]
    taught = plan(stages=changed(("distill",), {**QAT, "loss": LOSS, "teacher": "train"}))[2]
    assert alone.parents == {"model": "prune"}
    assert taught.parents == {"model": "prune", "teacher": "train"}


ATTENTION = {"_target_": "compressbench.training.losses.attention.Attention"}


def with_two_teachers(loss):
    cnn = {"_target_": "compressbench.models.small_cnn.SmallCnn", "width": 4}
    other = {**STAGES["train"], "model": cnn}
    distill = {**STAGES["distill"], "model": cnn, "loss": loss, "teacher": ["train", "other"]}
    return {"train": other, "other": other, "distill": distill}


def test_features_of_several_teachers_are_refused_before_anything_runs():
    found = plan(stages=with_two_teachers(LOSS))[2]
    assert found.parents == {"teacher": "train", "teacher.1": "other"}
    with pytest.raises(UserError, match=r"stages.distill: features of several teachers cannot be"):
        plan(stages=with_two_teachers(ATTENTION))


def test_every_teacher_counts_in_the_time_estimate_at_its_own_speed(monkeypatch):
    speeds = {"train": (0.5, 0.1), "other": (0.3, 0.05), "distill": (0.2, 0.01)}
    monkeypatch.setattr(estimate, "_speed_of", lambda planned, *rest: speeds[planned.name])
    images = len(Digits().split("train"))
    for devices in (1, 2):
        runtime = Runtime(devices=devices)
        laid_out = plan(stages=with_two_teachers(LOSS), runtime=runtime)
        found = estimate.stage_seconds(laid_out, Digits(), runtime)
        work = {name: seconds - estimate.MEASURING_SECONDS for name, seconds in found.items()}
        assert work["train"] == pytest.approx(images * 0.5 / devices)
        assert work["distill"] == pytest.approx(images * (0.2 + 0.1 + 0.05) / devices)


def test_a_stage_with_a_model_of_its_own_starts_fresh():
    stages = changed(("distill", "model"), {**MODEL, "hidden": [4]})
    distill = plan(stages=stages)[2]
    assert distill.parents == {"teacher": "train"}
    assert distill.job.model["hidden"] == [4]
    assert distill.job.model["num_classes"] == 10


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "recipe.stages is empty"),
        (
            changed(("distill", "teacher"), "trian"),
            "trian is not a stage before distill; did",
        ),
        (changed(("distill", "teacher"), "distill"), "is not a stage before distill"),
        (changed(("distill", "loss"), None), "distill: loss must be a distillation loss, got None"),
        (changed(("distill",), {**QAT, "teacher": "train"}), "teacher=train needs a loss"),
        (changed(("distill",), {**QAT, "loss": LOSS}), "teacher is required: the name of an earl"),
        (changed(("distill", "model"), {**MODEL, "num_classes": 7}), "7, but dataset digits has"),
        (changed(("prune", "sparsity"), 1.0), r"stages.prune: sparsity must be a number in \[0, 1"),
        (changed(("prune", "sparsty"), 0.5), "stages.prune.sparsty: no such option; did you mean"),
        (
            changed(("prune", "_target_"), "compressbench.training.losses.hinton.Hinton"),
            "no such option",
        ),
        (changed(("train",), {"epochs": 1}), "stages.train has no _target_"),
        ({"prune": STAGES["prune"], "train": STAGES["train"]}, "needs a model that is trained"),
        (changed(("distill", "model"), {**MODEL, "hiden": [3]}), "distill.model.hiden: no such"),
        (changed(("distill", "model"), {**MODEL, "checkpoint": "/no/file"}), ": no such file"),
    ],
)
def test_refuses_before_anything_runs(stages, message):
    with pytest.raises(UserError, match=message):
        plan(stages=stages)


@pytest.mark.parametrize("seed", [-1, 1.5, "7", True])
def test_refuses_a_seed_that_is_none(seed):
    with pytest.raises(UserError, match=r"seed must be an integer in \[0, "):
        plan(seed=seed)


def test_what_writes_files_counts_for_a_stage_that_weighs_them(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "compressbench.engine.plan.source_digest", lambda targets: seen.append(targets)
    )
    quantize = {
        "_target_": "compressbench.quantization.quantize.Quantize",
        "weight": {
            "_target_": "compressbench.quantization.rounding.nearest.Nearest",
            "ranges": {"_target_": "compressbench.quantization.observers.minmax.MinMax"},
        },
    }
    allocation = {
        "_target_": "compressbench.quantization.mixed_precision.Allocation",
        "sensitivity": {
            "_target_": "compressbench.analysis.sensitivity.loss_increase.LossIncrease"
        },
    }
    plan({"train": STAGES["train"], "quantize": quantize})
    mixed = {"train": STAGES["train"], "quantize": quantize | {"allocation": allocation}}
    last = plan(mixed)[-1]
    exporter = "compressbench.export.onnx.export_onnx"
    assert [exporter in targets for targets in seen] == [False, False, False, True]
    assert "onnxruntime" in last.parts["environment"]


def hidden(model):
    """The widths of the hidden layers of the model that distil begins with."""
    stages = {"train": STAGES["train"], "distill": {**STAGES["distill"], "model": "student"}}
    return plan(stages, model)[1].job.model


def test_a_student_is_the_model_of_the_run_with_other_options():
    student = hidden({**MODEL, "student": {"hidden": [4]}})
    assert student == {**plan()[0].job.model, "hidden": [4]}
    other = {"_target_": "compressbench.models.small_cnn.SmallCnn", "width": 8}
    assert hidden({**MODEL, "student": other})["_target_"] == other["_target_"]
    with_student = plan(model={**MODEL, "student": {"hidden": [4]}})
    assert [p.key for p in with_student] == keys(), "the others do not depend on it"


def test_a_student_does_not_start_from_the_checkpoint_of_its_teacher(tmp_path):
    from safetensors.torch import save_file

    from compressbench.models.mlp import Mlp

    save_file(Mlp([1, 8, 8], 10, [8]).state_dict(), tmp_path / "m.safetensors")
    model = {**MODEL, "checkpoint": str(tmp_path / "m.safetensors"), "student": {"hidden": [4]}}
    stages = {"train": STAGES["train"], "distill": {**STAGES["distill"], "model": "student"}}
    train, distill = plan(stages, model)
    assert train.job.checkpoint == model["checkpoint"]
    assert distill.job.checkpoint is None


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (None, r"model\.student must list .* got None; or choose a model of the group"),
        ({}, r"model\.student must list"),
        ({"hiden": [4]}, r"^model\.student\.hiden: no such option; did you mean hidden\?"),
        ({"hidden": 4}, r"^model\.student: hidden must be a list"),
    ],
)
def test_a_student_that_cannot_be_is_refused(student, message):
    with pytest.raises(UserError, match=message):
        hidden({**MODEL, "student": student})
