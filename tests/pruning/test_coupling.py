"""Which channels go together: exact counts, and the smaller model against a slow reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from compressbench.pruning.channels.removal import remove_channels
from compressbench.pruning.channels.settling import example_inputs, half_of, settled_coupling
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.prune_channels import PruneChannels
from tests.pruning.channel_zoo import SPEC, details, made, run
from tests.pruning.coupling_layers_zoo import (
    Experts,
    Grouped,
    Normed,
    PaddedShortcut,
    Recurrent,
    Tied,
    Volume,
)
from tests.pruning.coupling_zoo import (
    Bilinear,
    FlatJoin,
    Gated,
    Ghost,
    LinearView,
    Moved,
    Queries,
    TrainingHead,
    ignoring,
)

HALF = {"stem.0": 8, "a.0": 8, "last.0": 8}  # what is left of 16 channels each
HEADS = {"q": 16, "k": 8, "v": 8}
EXPERTS = {"embed": 8, "up.0": 12, "up.2": 12, "down.0": 8, "down.2": 8}
MOVES = (
    "shuffle", "torch shuffle", "pixels", "unpixels", "glu", "chunk", "tensor split", "half",
    "maxout", "windows", "input", "both ends", "tokens", "assigned", "stacked", "in place",
)  # fmt: skip

CASES = [
    (LinearView, (), {"stem.0": 8, "wide": 64, "up": 12, "last.0": 8}),
    (FlatJoin, (), {"a.0": 8, "b.0": 12, "fc1": 20}),
    *[(Gated, (kind,), {"stem.0": 8, "map.0": 16, "last.0": 8}) for kind in ("mask", "number")],
    (Gated, ("channel",), {"map.0": 16, "channel": 16}),
    *[(Queries, (kind,), HEADS) for kind in ("interleaved", "repeated", "expanded", "by torch")],
    (Bilinear, (), {"stem.0": 8}),
    (TrainingHead, (), {"stem.0": 16, "a.0": 8}),
    (Ghost, (), {"stem.0": 8, "first.0": 8, "cheap.0": 8, "last.0": 8}),
    *[(Moved, (kind,), HALF) for kind in MOVES],
    (PaddedShortcut, (), {"stem.0": 8, "a.0": 12, "b.0": 24}),  # 16 of the 32 of b are fixed
    *[(Normed, (norm,), {"a": 16}) for norm in ("groups", "each", "instance")],
    (Grouped, (), {"stem.0": 8, "more": 16, "fewer": 8, "up": 12, "last.0": 8}),
    *[(Experts, (kind,), EXPERTS) for kind in ("stacked", "einsum", "best")],
    (Volume, (), {"deep": 8, "line": 12}),
    *[(Recurrent, (kind,), {"first": 12, "last": 12}) for kind in ("lstm", "attention")],
    (Recurrent, ("encoder",), {"first": 12, "last": 12, "encoder.linear1": 12}),
]
NAMES = [" ".join((kind.__name__, *options)) for kind, options, _ in CASES]


def kept(layer: nn.Module) -> int:
    width = layer.out_channels if hasattr(layer, "out_channels") else layer.out_features
    transposed = getattr(layer, "transposed", False)
    groups = getattr(layer, "groups", 1)
    assert width == (layer.weight.shape[1] * groups if transposed else len(layer.weight))
    return width


@pytest.mark.parametrize(("kind", "options", "left"), CASES, ids=NAMES)
def test_half_of_the_channels_goes_in_every_kind_of_model(kind, options, left):
    model = made(kind, *options)
    outcome = run(PruneChannels(L2(), 0.5, round_to=4), model)
    told = "8 of 32 of b.0 (others stay: round_to"
    assert (told in "".join(outcome.warnings)) == (kind is PaddedShortcut)
    assert len(outcome.warnings) == (kind is PaddedShortcut)
    small = outcome.artifact.model
    assert {name: kept(small.get_submodule(name)) for name in left} == left
    assert not any("cannot be followed" in text for text in details(outcome).values())
    small.train()(torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize(("kind", "options", "left"), CASES, ids=NAMES)
def test_the_smaller_model_is_the_wide_one_that_ignores_the_channels(kind, options, left):
    model, inputs = made(kind, *options), 10 * torch.randn(5, 3, 8, 8)
    coupling = settled_coupling(model, example_inputs(SPEC))
    for part in coupling.parts:
        gone = half_of([part])
        small = remove_channels(model, coupling, gone, example_inputs(SPEC))
        with torch.no_grad():
            expected = ignoring(model, coupling.removed(gone))(inputs)
            varies = float((expected - expected[:1]).abs().max())
            found = small.eval()(inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * varies)
        assert varies > 1e-3 * float(expected.abs().max()), "nearly constant"


@pytest.mark.parametrize(
    ("kind", "option", "layer", "reason"),
    [
        (Tied, "gram", "a.0", "combined with other channels, each with each (matmul)"),
        (Tied, "held", "stem.0", "a weight that no layer holds (conv2d)"),
        (Tied, "standardized", "a.0", "the weight of a.0 is used outside of the layer"),
        (Tied, "unknown", "a.0", "enter cdist, which cannot be followed"),
        (Tied, "sorted", "a.0", "sort runs over its channels"),
        (Tied, "picked", "a.0", "selected by their positions (getitem)"),
        (Normed, "one group", "a", "GroupNorm normalizes over its channels"),
        (Normed, "neighbours", "a", "LocalResponseNorm runs over its channels"),
        (Gated, "expanded", "map.0", "coupling_zoo.py"),
        (Recurrent, "lstm", "embed", "enter LSTM, whose channels are not pruned"),
    ],
)
def test_the_rest_has_a_true_reason(kind, option, layer, reason):
    outcome = run(PruneChannels(L2(), 0.5, round_to=4), made(kind, option))
    assert reason in details(outcome)[layer]
    assert kept(outcome.artifact.model.get_submodule(layer)) == kept(
        made(kind, option).get_submodule(layer)
    )
    assert outcome.artifact.model.last


def test_a_model_of_which_nothing_can_go_is_refused_before_training():
    stage = PruneChannels(L2(), 0.5)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(UserError, match=r"^no channel can be removed \(1: its channels are the"):
        stage.check_model(linear, SPEC)
    with pytest.raises(UserError, match=r"^the channels of this model cannot be followed: Runt"):
        stage.check_model(nn.Linear(5, 3), SPEC)
    stage.check_model(made(LinearView), SPEC)


class Deaf(nn.Module):
    """Its outputs hardly depend on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(192, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.fc(self.a(x.flatten(1) * 0.0))


def test_a_proof_on_constant_outputs_is_none():
    coupling = settled_coupling(made(Deaf), example_inputs(SPEC))
    assert "the outputs are the same for all samples" in coupling.reasons["a"]
    assert not coupling.parts


def test_less_than_was_asked_for_is_told():
    stage = PruneChannels(L2(), 0.9, round_to=1, max_layer_sparsity=0.25)
    (warning,) = run(stage, made(FlatJoin)).warnings
    assert warning.startswith(
        "fewer channels than 90.0% were removed: 4 of 16 of a.0, 6 of 24 of b.0, 10 of 40 of fc1 ("
    )
    (warning,) = run(replace(stage, scope="global"), made(FlatJoin)).warnings
    assert warning.startswith("fewer channels than 90.0% were removed: 20 of 80 that can be")
    for share in (0.1, 0.37, 0.5, 0.88):
        for scope in ("layer", "global"):
            outcome = run(PruneChannels(L2(), share, scope=scope, round_to=1), made(FlatJoin))
            removed = outcome.artifact.edits[-1]["removed"]
            count = sum(len(removed.get(n, {}).get("out", ())) for n in ("a.0", "b.0", "fc1"))
            assert abs(count - share * 80) <= 1.5, "half a channel for each of three layers"
            assert not outcome.warnings
