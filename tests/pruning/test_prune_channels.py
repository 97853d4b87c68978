"""Channel removal: the smaller model computes what the wide one does without those channels."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import CHANNEL_PRUNED, TRAINED, Stage
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.prune_channels import PruneChannels
from tests.pruning.channel_zoo import (
    ZOO,
    Awkward,
    CountedHeads,
    Flat,
    Grouped,
    Mobile,
    Residual,
    Transformer,
    details,
    made,
    run,
)


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("scope", ["layer", "global", "sensitivity"])
def test_every_kind_of_model_gets_narrower_in_steps_of_eight_and_keeps_its_classes(kind, scope):
    model = made(kind)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = run(PruneChannels(L2(), 0.4, scope=scope), model)
    small = outcome.artifact.model
    assert outcome.artifact.properties == {TRAINED, CHANNEL_PRUNED}
    assert not outcome.warnings
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    for name, layer in small.named_modules():
        old = model.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            assert layer.out_channels % 8 == 0
            assert layer.weight.shape[0] == layer.out_channels >= 8
            assert layer.weight.shape[1] * layer.groups == layer.in_channels
        elif isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
            assert layer.out_features % 8 == 0 or layer.out_features == old.out_features == 3
    assert all(torch.equal(state[n], v) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in small.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())


def test_all_families_of_the_mobile_net_are_pruned_and_only_the_classifier_is_left():
    outcome = run(PruneChannels(L2(), 0.5), made(Mobile))
    found = details(outcome)
    assert found["fc"].endswith("left: its channels are the model's outputs")
    assert found["stem.0"] == found["depthwise.0"] == found["excite"] == "32 → 16 channels"
    assert found["squeeze"] == "16 → 8 channels"
    assert found["side.0"] == "16 → 8 channels"
    assert found["join.0"] == "48 → 24 channels"


def test_coverage_counts_the_weights_that_are_gone():
    model = made(Residual)
    outcome = run(PruneChannels(L2(), 0.5), model)
    for row in outcome.coverage:
        before = model.get_submodule(row.layer).weight.numel()
        after = outcome.artifact.model.get_submodule(row.layer).weight.numel()
        assert (row.total, row.touched) == (before, before - after)
        assert row.touched > 0


def test_the_channels_of_least_norm_go():
    model = made(Flat)
    with torch.no_grad():
        model.stem[0].weight[[1, 3, 5, 7, 9, 11, 13, 15]] *= 0.01
    edit = run(PruneChannels(L2(), 0.5), model).artifact.edits[-1]
    assert edit["removed"]["stem.0"]["out"] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert edit["removed"]["fc1"]["in"] == [c * 16 + p for c in range(1, 16, 2) for p in range(16)]


def test_a_channel_is_worth_what_it_is_in_all_layers_that_share_it():
    model = made(Residual)
    with torch.no_grad():
        for layer in (model.stem[0], model.outer[0]):
            nn.init.ones_(layer.weight)
        model.stem[0].weight[:16] *= 0.1  # unimportant here, but
        model.outer[0].weight[:16] *= 3.0  # what is added to them matters
    edit = run(PruneChannels(L2(), 0.5), model).artifact.edits[-1]
    assert edit["removed"]["stem.0"]["out"] == edit["removed"]["outer.0"]["out"]
    stem = 0.01 / (0.5 * 1.01), 1 / (0.5 * 1.01)
    outer = 9 / (0.5 * 10), 1 / (0.5 * 10)
    lower = range(16) if stem[0] + outer[0] < stem[1] + outer[1] else range(16, 32)
    assert edit["removed"]["stem.0"]["out"] == list(lower)


def test_global_takes_more_where_channels_are_worth_less_whatever_the_scale():
    model = made(Flat)
    with torch.no_grad():
        model.fc1.weight[:16] *= 1e-3  # two thirds of fc1 are nothing next to its best
        model.fc1.weight *= 1e4  # a scale means nothing: BatchNorm and the next layer undo it
    together = details(run(PruneChannels(L2(), 0.4, scope="global"), model))
    assert together["fc1"].startswith("24 → 8")
    assert together["stem.0"] == "16 channels left: sparsity and rounding remove none"
    assert details(run(PruneChannels(L2(), 0.4), model))["fc1"].startswith("24 → 16")


def test_equal_channels_go_from_the_first():
    model = made(Flat)
    nn.init.constant_(model.stem[0].weight, 0.1)
    edit = run(PruneChannels(L2(), 0.5), model).artifact.edits[-1]
    assert edit["removed"]["stem.0"]["out"] == list(range(8))


def test_the_floor_holds_and_counts_need_not_be_rounded():
    for stage, width in (
        (PruneChannels(Magnitude(), 0.99), 8),
        (PruneChannels(Magnitude(), 0.99, min_channels=16), 16),
        (PruneChannels(Magnitude(), 0.99, round_to=1), 4),  # a tenth of 32, rounded up
        (PruneChannels(Magnitude(), 0.99, round_to=1, min_channels=1), 1),
        (PruneChannels(Magnitude(), 0.4, round_to=1), 19),  # 19.2
        (PruneChannels(Magnitude(), 0.4, round_to=4), 20),
    ):
        assert run(stage, made(Residual)).artifact.model.stem[0].out_channels == width


def test_groups_stay_equally_wide():
    small = run(PruneChannels(L2(), 0.4, round_to=1), made(Grouped)).artifact.model
    assert small.stem[0].out_channels == small.grouped[0].in_channels == 20
    assert small.grouped[0].weight.shape[:2] == (20, 5)


@pytest.mark.parametrize("kind", [Transformer, CountedHeads])
def test_the_least_important_head_goes_as_a_whole(kind):
    model = made(kind)
    with torch.no_grad():
        for name in ("query", "key", "value"):
            model.attention.get_submodule(name).weight[16:24] *= 0.1
    outcome = run(PruneChannels(L2(), 0.25), model)
    removed = outcome.artifact.edits[-1]["removed"]
    for name in ("query", "key", "value"):
        assert removed[f"attention.{name}"] == {"out": list(range(16, 24))}
    assert removed["attention.out"] == {"in": list(range(16, 24))}
    assert outcome.artifact.model.attention.heads == 3
    assert outcome.artifact.model.up.out_features == 40
    assert "LayerNorm normalizes" in details(outcome)["embed"]


def test_skipped_layers_keep_their_channels():
    outcome = run(PruneChannels(L2(), 0.5, skip=["outer.*"]), made(Residual))
    found = details(outcome)
    assert found["outer.0"] == "inputs 24 → 16, 32 channels left: named in skip"
    assert found["stem.0"] == "32 channels left: coupled with outer.0"
    assert found["inner.0"] == "24 → 16 channels"
    with pytest.raises(UserError, match=r"the nearest name is inner\.0"):
        run(PruneChannels(L2(), 0.5, skip=["innr.0"]), made(Residual))


@pytest.mark.parametrize(
    ("kind", "pruned", "left"),
    [
        (Residual, {"inner.0"}, {"stem.0", "outer.0"}),
        (Mobile, {"side.0", "squeeze"}, {"stem.0", "excite"}),  # side's depthwise one is no other
        (Transformer, {"up"}, {"attention.query", "attention.value"}),
    ],
)
def test_channels_of_several_layers_stay_if_asked(kind, pruned, left):
    found = details(run(PruneChannels(L2(), 0.5, coupled=False), made(kind)))
    for name in pruned:
        assert re.match(r"\d+ → \d+ channels", found[name].split(", ")[-1]), found[name]
    for name in left:
        assert "other layers share its channels (coupled=false)" in found[name]
    everything = details(run(PruneChannels(L2(), 0.5), made(kind)))
    for name in left:
        assert "coupled=false" not in everything[name]


def test_a_stage_that_touches_nothing_says_why():
    with pytest.raises(CheckFailedError, match=r"sparsity=0\.05 with round_to=8 and at most 32"):
        run(PruneChannels(L2(), 0.05), made(Residual))
    with pytest.raises(CheckFailedError, match=r"strange.0: the model does not run without"):
        run(PruneChannels(L2(), 0.5, skip=["stem*", "last*"]), made(Awkward, "fixed shape"))
    with pytest.raises(CheckFailedError, match="no more than 64 channels"):
        run(PruneChannels(L2(), 0.5, round_to=64), made(Residual))


@pytest.mark.parametrize("value", [1.0, float("nan"), -0.1, "abc", True])
def test_a_sparsity_outside_its_range_is_refused(value):
    with pytest.raises(UserError, match=r"^sparsity must be a number in \[0, 1\), got"):
        PruneChannels(L2(), value)


@pytest.mark.parametrize(
    "options", [{"round_to": 0}, {"min_channels": 0}, {"scope": "x"}, {"batchnorm_images": 1}]
)
def test_other_options_are_checked(options):
    with pytest.raises(UserError, match=next(iter(options))):
        PruneChannels(L2(), 0.5, **options)


def test_it_is_a_stage():
    assert isinstance(PruneChannels(L2(), 0.5), Stage)
    assert PruneChannels(L2(), 0.5).passes(500) == (0, 1000)
