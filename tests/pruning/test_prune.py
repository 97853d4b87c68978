"""Unstructured pruning: exact counts, ties, masks that last, grids, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core import artifact
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import MASKED, TRAINED, Stage
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.criteria.mean_activation import MeanActivation
from compressbench.pruning.criteria.sparsegpt import SparseGpt
from compressbench.pruning.criteria.wanda import Wanda
from compressbench.pruning.prune import Prune
from tests.pruning.pruned_net import (
    LAYERS,
    WEIGHTS,
    Net,
    Noise,
    Smallest,
    build,
    context,
    pruned,
    trained,
    zeros,
)


@pytest.mark.parametrize("sparsity", [0.1, 0.333, 0.5, 0.8, 0.99])
def test_exactly_the_share_is_zero_and_the_rest_is_untouched(sparsity):
    start = trained()
    result = pruned(Prune(Magnitude(), sparsity=sparsity), start).artifact.model
    assert sum(zeros(result).values()) == round(sparsity * WEIGHTS)
    for name in LAYERS:
        old, new = start.model.get_submodule(name).weight, result.get_submodule(name).weight
        assert torch.equal(new[new != 0], old[new != 0])
        assert not bool((old == 0).any()), "the incoming model was changed"


def test_per_layer_takes_the_share_of_each():
    result = pruned(Prune(Magnitude(), sparsity=0.5, scope="layer")).artifact.model
    assert zeros(result) == {"stem": 72, "conv": 216, "fc": 9}


def test_global_takes_from_the_layer_with_the_smaller_weights():
    start = trained()
    with torch.no_grad():
        start.model.conv.weight.mul_(1e-3)
    together = zeros(pruned(Prune(Magnitude(), sparsity=0.5), start).artifact.model)
    assert together == {"stem": 0, "conv": round(0.5 * WEIGHTS), "fc": 0}
    apart = pruned(Prune(Magnitude(), sparsity=0.5, scope="layer"), start).artifact.model
    assert zeros(apart)["stem"] == 72


def test_what_goes_is_what_is_smallest():
    start = trained()
    result = pruned(Prune(L2(), sparsity=0.5), start).artifact.model
    old = torch.cat([start.model.get_submodule(n).weight.flatten() for n in LAYERS]).abs()
    new = torch.cat([result.get_submodule(n).weight.flatten() for n in LAYERS])
    assert old[new == 0].max() <= old[new != 0].min()


def test_of_equal_weights_the_first_go():
    start = trained()
    with torch.no_grad():
        for name in LAYERS:
            start.model.get_submodule(name).weight.fill_(0.5)
    result = pruned(Prune(Magnitude(), sparsity=0.5), start).artifact.model
    flat = torch.cat([result.get_submodule(n).weight.flatten() for n in LAYERS])
    expected = torch.arange(WEIGHTS)[1:][: round(0.5 * WEIGHTS)]  # the first weight is the floor
    removed = (flat == 0).nonzero().flatten()
    beyond = removed[removed >= 144] - 1  # from conv on, whose first weight is a floor, too
    assert torch.equal(removed[removed < 144], expected[expected < 144])
    assert len(removed) == len(expected)
    assert torch.equal(beyond, torch.arange(144, 144 + len(beyond)))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_threshold_equals_a_slow_loop(scope):
    start = trained()
    result = pruned(Prune(Magnitude(), threshold=0.07, scope=scope), start).artifact.model
    for name in LAYERS:
        old = start.model.get_submodule(name).weight.flatten().tolist()
        new = result.get_submodule(name).weight.flatten().tolist()
        assert new == [0.0 if abs(w) < 0.07 else w for w in old]


def test_no_layer_loses_its_last_weight():
    start = trained()
    with torch.no_grad():
        start.model.fc.weight.mul_(1e-6)
    for stage in (Prune(Magnitude(), sparsity=0.9), Prune(Magnitude(), threshold=100.0)):
        outcome = pruned(stage, start)
        fc = outcome.artifact.model.fc.weight
        assert int(fc.count_nonzero()) == 1
        assert fc.abs().max() == start.model.fc.weight.abs().max()
        row = next(r for r in outcome.coverage if r.layer == "fc")
        assert "most important weight is kept" in row.detail
        assert row.touched == 17


def test_masks_are_nested_and_earlier_zeros_count():
    first = pruned(Prune(Magnitude(), sparsity=0.4))
    second = pruned(Prune(Smallest(), sparsity=0.6), first.artifact)
    assert sum(zeros(second.artifact.model).values()) == round(0.6 * WEIGHTS)
    for name in LAYERS:
        old = first.artifact.model.get_submodule(name).weight_mask
        new = second.artifact.model.get_submodule(name).weight_mask
        assert not bool((new & ~old).any())
    named = [n for e in second.artifact.edits if e["kind"] == "mask" for n in e["layers"]]
    assert sorted(named) == sorted(set(named)) == sorted(LAYERS)
    touched = sum(row.touched for row in second.coverage)
    assert touched == round(0.6 * WEIGHTS) - round(0.4 * WEIGHTS)


def test_the_same_again_touches_nothing_and_says_so():
    first = pruned(Prune(Magnitude(), sparsity=0.4))
    with pytest.raises(CheckFailedError, match=r"changed nothing.*238 of 594"):
        pruned(Prune(Magnitude(), sparsity=0.4), first.artifact)
    with pytest.raises(CheckFailedError, match="changed nothing"):
        pruned(Prune(Magnitude(), sparsity=0.0))


def test_skipped_layers_stay_and_do_not_count():
    outcome = pruned(Prune(Magnitude(), sparsity=0.5, skip=["f?", "st*"]))
    assert zeros(outcome.artifact.model) == {"stem": 0, "conv": 216, "fc": 0}
    rows = {row.layer: row for row in outcome.coverage}
    assert rows["fc"].detail == "left: named in skip"
    assert rows["fc"].touched == 0
    assert rows["conv"].detail == "sparsity 0.50"
    assert "weight_mask" not in dict(outcome.artifact.model.fc.named_buffers())


def test_a_tied_weight_is_pruned_once():
    model = Net()
    model.twin = nn.Conv2d(8, 6, 3)
    model.twin.weight = model.conv.weight
    outcome = pruned(Prune(Magnitude(), sparsity=0.5), trained(model=model))
    result = outcome.artifact.model
    assert result.twin.weight is result.conv.weight
    assert torch.equal(result.twin.weight_mask, result.conv.weight_mask)
    assert sum(row.touched for row in outcome.coverage) == round(0.5 * WEIGHTS)


def test_a_criterion_of_ones_own_and_a_wrong_one():
    result = pruned(Prune(Smallest(), sparsity=0.5, scope="layer")).artifact.model
    weight = result.conv.weight
    assert weight[weight != 0].abs().max() < trained().model.conv.weight.abs().median() * 1.01
    for broken, text in (
        (lambda layers, context: {}, "got none"),
        (lambda layers, context: {n: m.weight * float("nan") for n, m in layers.items()}, "NaN"),
    ):
        with pytest.raises(CheckFailedError, match=text):
            pruned(Prune(broken, sparsity=0.5))


def test_measured_statistics_of_batchnorm_are_those_of_the_pruned_model():
    result = pruned(Prune(Magnitude(), sparsity=0.5, batchnorm="measure")).artifact.model
    own = context()
    outputs = result.stem(own.data.prepare(own.data.split("train").inputs))
    torch.testing.assert_close(result.bn.running_mean, outputs.mean((0, 2, 3)))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    result = replace(pruned(Prune(Magnitude(), sparsity=0.5)).artifact, key="k")
    artifact.save(result, tmp_path)
    loaded = artifact.load(tmp_path, build, "k")
    inputs = torch.randn(4, 2, 8, 8)
    assert torch.equal(loaded.model(inputs), result.model(inputs))
    assert loaded.properties == {TRAINED, MASKED}
    assert artifact.digest(loaded) == artifact.digest(result)


def test_the_same_twice_is_bit_identical():
    stage = Prune(Magnitude(), sparsity=0.7)
    assert artifact.digest(pruned(stage).artifact) == artifact.digest(pruned(stage).artifact)


def test_it_is_a_stage():
    stage = Prune(Magnitude(), sparsity=0.5)
    assert isinstance(stage, Stage)
    assert stage.passes(500) == (0, 1000)
    assert replace(stage, batchnorm="measure").passes(5000) == (0, 1024)
    assert replace(stage, batchnorm="keep").passes(5000) == (0, 0)


def test_two_thresholds_as_a_slow_loop_reads_them():
    start = trained()
    with torch.no_grad():
        start.model.conv.bias[0] = -100.0  # a channel that ReLU keeps silent
    stage = Prune(Magnitude(), threshold=0.01, activation_threshold=0.001)
    result = pruned(stage, start).artifact.model
    own = context()
    images = own.data.prepare(own.data.split("train").inputs)
    with torch.no_grad():
        stem = F.relu(start.model.bn(start.model.stem(images)))
        conv = F.relu(start.model.conv(stem))
        outputs = {"stem": stem, "conv": conv, "fc": start.model.fc(conv.mean((2, 3)))}
    for name, output in outputs.items():
        activity = output.abs().movedim(1, 0).flatten(1).mean(1)
        layer = start.model.get_submodule(name)
        for channel, weights in enumerate(layer.weight.detach()):
            idle = float(activity[channel]) < 0.001
            expected = torch.where((weights.abs() < 0.01) | idle, 0.0, weights)
            assert torch.equal(result.get_submodule(name).weight[channel].detach(), expected)
    assert not bool(result.conv.weight[0].any())


def test_activations_alone_by_threshold():
    start = trained()
    with torch.no_grad():
        start.model.conv.bias[2] = -100.0
    outcome = pruned(Prune(MeanActivation(64), threshold=1e-3), start)
    silent = (outcome.artifact.model.conv.weight == 0).flatten(1).all(1)
    assert silent.tolist() == [False, False, True, False, False, False]


def test_a_criterion_of_other_units_is_normalised_when_ranked_together():
    start = trained()
    with torch.no_grad():
        start.model.bn.weight.mul_(1e-3)  # the inputs of conv
    shares = {}
    for normalize in (None, False):
        stage = Prune(Wanda(64), sparsity=0.5, normalize=normalize)
        shares[normalize] = zeros(pruned(stage, start).artifact.model)["stem"] / 144
    assert shares[False] == 0
    assert 0.3 < shares[None] < 0.7
    with pytest.raises(UserError, match="normalize=True needs sparsity and scope=global"):
        Prune(Wanda(64), sparsity=0.5, scope="layer", normalize=True)


def test_only_the_layers_named_are_pruned():
    outcome = pruned(Prune(Magnitude(), sparsity=0.5, layers=["conv"]))
    assert zeros(outcome.artifact.model) == {"stem": 0, "conv": 216, "fc": 0}
    assert {r.layer: r.detail for r in outcome.coverage}["fc"] == "left: not named in layers"
    with pytest.raises(UserError, match=r"layers: no .* 'convv'; the nearest name is conv"):
        Prune(Magnitude(), sparsity=0.5, layers=["convv"]).check_model(Net(), Noise().spec)


def test_a_pattern_leaves_what_it_does_not_fit_unless_that_is_named():
    outcome = pruned(Prune(Magnitude(), pattern="2:4"))
    assert zeros(outcome.artifact.model) == {"stem": 0, "conv": 216, "fc": 0}
    rows = {row.layer: row.detail for row in outcome.coverage}
    assert rows["stem"] == "left: 2:4: 4 does not divide its 2 inputs"
    with pytest.raises(UserError, match="pattern=2:4 does not fit fc: 4 does not divide its 6"):
        Prune(Magnitude(), pattern="2:4", layers=["conv", "fc"]).check_model(Net(), Noise().spec)
    Prune(Magnitude(), pattern="2:4", layers=["*"]).check_model(Net(), Noise().spec)


def test_sparsegpt_leaves_other_outputs_than_zeroing_and_masks_hold():
    start = trained()
    own = context()
    images = own.data.prepare(own.data.split("train").inputs)
    errors = {}
    for criterion in (SparseGpt(64), Magnitude()):
        result = pruned(Prune(criterion, sparsity=0.6, scope="layer"), start).artifact.model
        assert sum(zeros(result).values()) == 86 + 259 + 11
        with torch.no_grad():
            errors[type(criterion)] = float((result(images) - start.model(images)).square().mean())
    assert errors[SparseGpt] < errors[Magnitude]
