"""Every YAML of every group: its purpose, its options, and what its protocol promises."""

import inspect
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressbench.config.groups import GROUPS, options
from compressbench.config.instantiate import instantiate
from compressbench.core.protocols import FeatureLoss, LearntCriterion
from compressbench.core.types import Runtime, Stage
from compressbench.data.digits import Digits
from compressbench.engine.data_options import takes_texts
from compressbench.pruning.criteria.scores import of_channels, of_weights, scores_of
from compressbench.training.teaching.objective import Compared
from tests.contracts.group_files import (
    CONF,
    FILES,
    GIVEN,
    GIVEN_TO_MODELS,
    METHODS,
    RESERVED,
    composed,
    context,
    of,
    plain,
    read,
)


def test_every_group_is_on_the_help_page():
    assert set(GROUPS) == {p.name for p in CONF.iterdir() if p.is_dir()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_has_a_purpose(path):
    purpose = options(path.parent.name, [CONF])[path.stem]
    assert 10 < len(purpose) < 110


@pytest.mark.parametrize(
    "path", [p for g in METHODS for p in of(g)], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_shows_every_option_of_its_class(path):
    """An option that no YAML shows is hidden; one that no class takes is read by nothing."""
    config = read(path)
    module, _, name = config["_target_"].rpartition(".")
    target = getattr(__import__(module, fromlist=[name]), name)
    given = GIVEN | GIVEN_TO_MODELS if path.parent.name == "model" else GIVEN
    parameters = set(inspect.signature(target).parameters) - given
    from_defaults = {
        d.partition("@")[2].partition(".")[0]
        for entry in config.get("defaults", []) if isinstance(entry, dict) for d in entry
        if "override" not in d
    }  # fmt: skip
    assert set(config) - RESERVED | from_defaults == parameters - RESERVED


def skip_without_its_library(path) -> None:
    """Models of other libraries have tests of their own, with fewer weights."""
    module, _, name = read(path)["_target_"].rpartition(".")
    libraries = getattr(getattr(__import__(module, fromlist=[name]), name), "libraries", ())
    if libraries:
        pytest.skip(f"needs {', '.join(libraries)}: see tests/models/test_foreign_models.py")


def of_texts(path: Path) -> bool:
    return takes_texts(read(path), "model") is True


def taken(path: Path, **given) -> dict:
    """What the class takes of what is given to models."""
    module, _, name = read(path)["_target_"].rpartition(".")
    target = getattr(__import__(module, fromlist=[name]), name)
    parameters = inspect.signature(target).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {k: v for k, v in given.items() if every or k in parameters}


def answer(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one answer with 7 classes, or 60 tokens."""
    others = {"small_unet": (7, *shape[1:]), "autoencoder": shape, "causal_transformer": (11, 60)}
    return others.get(path.stem, (7,))


@pytest.mark.parametrize("path", [p for p in of("model") if not of_texts(p)], ids=lambda p: p.stem)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 12)])
def test_a_model_maps_images_to_logits(path, shape):
    skip_without_its_library(path)
    if path.stem == "small_unet":
        shape = (shape[0], 12, 8)
    model = instantiate(plain(path, **taken(path, input_shape=list(shape), num_classes=7))).eval()
    assert model(torch.rand(2, *shape)).shape == (2, *answer(path, shape))


@pytest.mark.parametrize("path", [p for p in of("model") if of_texts(p)], ids=lambda p: p.stem)
def test_a_model_maps_texts_to_logits(path):
    skip_without_its_library(path)
    given = {"input_shape": [11], "num_classes": 7, "vocabulary": 60, "pad": 2}
    model = instantiate(plain(path, **taken(path, **given))).eval()
    ids = torch.randint(60, (3, 11))
    ids[0, 4:] = 2
    assert model(ids).shape == (3, *answer(path, (11,)))
    assert torch.isfinite(model(torch.full((2, 11), 2))).all()


@pytest.mark.parametrize(
    "path", [p for p in of("model") if "student" in read(p)], ids=lambda p: p.stem
)
def test_the_student_of_a_model_is_smaller(path):
    given = {"input_shape": [11], "vocabulary": 60, "pad": 2} if of_texts(path) else {
        "input_shape": [1, 8, 8]}  # fmt: skip
    given = taken(path, num_classes=7, **given)
    large, small = (
        sum(p.numel() for p in instantiate(plain(path, **given, **changes)).parameters())
        for changes in ({}, read(path)["student"])
    )
    assert small < 0.6 * large


@pytest.mark.parametrize("path", of("criterion"), ids=lambda p: p.stem)
def test_a_criterion_scores_every_weight_or_channel_and_changes_nothing(path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, (1, 3)), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 10), nn.BatchNorm1d(10),
    ).eval()  # fmt: skip
    layers = {name: model[int(name)] for name in ("0", "3", "7")}
    before = {name: values.clone() for name, values in model.state_dict().items()}
    criterion = instantiate(composed(path) | ({"images": 40} if "images" in read(path) else {}))
    if isinstance(criterion, LearntCriterion):
        check_steps(criterion)
        return
    scores, again = (scores_of(criterion, model, layers, context()) for _ in range(2))
    for name, layer in layers.items():
        assert torch.isfinite(of_weights(layer, scores[name])).all()
        assert of_weights(layer, scores[name]).shape == layer.weight.shape
        assert of_channels(layer, scores[name]).shape == layer.weight.shape[:1]
        assert torch.equal(scores[name], again[name])
    assert all(torch.equal(values, before[n]) for n, values in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def has_labels(term) -> bool:
    return getattr(term, "sees_labels", False)


def check_steps(criterion: LearntCriterion) -> None:
    """A score that is learnt in training has the shape of the weight, and moves."""
    weight, gradient = torch.randn(2, 3, 4, 5).unbind()
    once = criterion.step(torch.zeros_like(weight), weight, gradient, 0.1)
    assert once.shape == weight.shape
    assert torch.isfinite(once).all()
    assert not torch.equal(criterion.step(once, weight, gradient, 0.1), once)


@pytest.mark.parametrize("path", of("loss"), ids=lambda p: p.stem)
@settings(max_examples=10, deadline=None)
@given(batch=st.integers(3, 5), classes=st.integers(2, 9), seed=st.integers(0, 99))
def test_a_loss_is_a_scalar_with_a_gradient(path, batch, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(batch) % classes
    loss = instantiate(composed(path))
    for term in getattr(loss, "terms", {"": loss}).values():
        shape = (batch, classes, 3, 2) if isinstance(term, FeatureLoss) else (batch, classes)
        student = torch.randn(*shape, generator=generator, requires_grad=True)
        teacher = torch.randn(*shape, generator=generator)
        pair = (student, teacher)
        if isinstance(term, FeatureLoss):
            connector = term.connect((classes, 3, 2), (classes, 3, 2))
            pair = Compared("", "", "", connector).connected(*pair)
        labels = () if isinstance(term, FeatureLoss) and not has_labels(term) else (targets,)
        found = term(*pair, *labels)
        found.backward()
        assert found.shape == ()
        assert found >= 0
        assert torch.isfinite(student.grad).all()
        assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("path", of("sensitivity"), ids=lambda p: p.stem)
def test_a_sensitivity_is_a_cost_that_does_not_change_the_model(path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 10))
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    candidates = {n: {b: model[int(n)].weight * (1 - 2.0**-b) for b in (2, 5)} for n in "03"}
    costs = instantiate(plain(path, images=20, batch_size=8))(model, candidates, context())
    assert costs.keys() == candidates.keys()
    assert all(0 < costs[n][5] < costs[n][2] for n in "3")
    assert all(value >= 0 for by_bits in costs.values() for value in by_bits.values())
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("path", of("stage"), ids=lambda p: p.stem)
def test_a_stage_is_a_stage(path):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONF)):
        composed = compose("config", overrides=[f"+stage@made={path.stem}"])
    config = OmegaConf.to_container(composed.made, resolve=True)
    stage = instantiate({k: v for k, v in config.items() if k != "teacher"})
    assert isinstance(stage, Stage)
    trained, forwarded = stage.passes(100)
    assert trained >= 0
    assert forwarded >= 0
    assert trained + forwarded > 0


@pytest.mark.parametrize("path", of("recipe"), ids=lambda p: p.stem)
def test_a_recipe_lays_out(path):
    """Composes, builds every stage, and has an order that works."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from compressbench.engine.plan import make_plan

    with initialize_config_dir(str(CONF)):
        config = OmegaConf.to_container(compose("config", overrides=[f"recipe={path.stem}"]))
    plan = make_plan(
        config["recipe"]["stages"], model=config["model"], dataset=config["dataset"],
        data=Digits(), runtime=Runtime(), seed=0,
    )  # fmt: skip
    assert [p.name for p in plan] == list(config["recipe"]["stages"])
    assert len({p.key for p in plan}) == len(plan)
