"""Channel pruning to a limit: counts against closed forms, the least pruning, joint limits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.models.resnet import ResNet
from compressbench.pruning.channels.limits import check_limit, count, macs, most
from compressbench.pruning.criteria.apoz import Apoz
from compressbench.pruning.criteria.batchnorm_scale import BatchNormScale
from compressbench.pruning.criteria.grasp import Grasp
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.criteria.mean_activation import MeanActivation
from compressbench.pruning.criteria.mixed import Mixed
from compressbench.pruning.criteria.random import Random
from compressbench.pruning.criteria.snip import Snip
from compressbench.pruning.criteria.sparsegpt import SparseGpt
from compressbench.pruning.criteria.taylor import Taylor
from compressbench.pruning.criteria.wanda import Wanda
from compressbench.pruning.prune import Prune
from compressbench.pruning.prune_channels import PruneChannels
from tests.pruning.channel_zoo import Flat, Grouped, Mobile, Residual, context, made, run, trained


@pytest.mark.parametrize(("depth", "weights", "expected"),
                         [(20, 270_896, 40_813_184), (56, 851_504, 125_747_840)])  # fmt: skip
def test_counts_are_the_published_ones(depth, weights, expected):
    model = ResNet((3, 32, 32), 10, depth).eval()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sum(m.weight.numel() for m in layers) == weights
    assert macs(model, torch.zeros(2, 3, 32, 32)) == expected
    assert count(model, torch.zeros(1, 3, 32, 32))["params"] == sum(
        p.numel() for p in model.parameters()
    )


def test_macs_of_every_kind_of_product():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv2d(4, 6, (3, 2), stride=2, groups=2)
            self.up = nn.ConvTranspose2d(6, 5, 3, groups=1)
            self.q = nn.Linear(7, 8)

        def forward(self, x):
            x = self.up(self.grouped(x))  # [B, 6, 4, 4] -> [B, 5, 6, 6]
            x = x.flatten(2)[..., :35].reshape(len(x), -1, 7)  # [B, 25, 7]
            q = self.q(x)
            return F.scaled_dot_product_attention(q, q, x) @ torch.ones(7, 3)

    convs = 6 * 4 * 4 * 2 * 6 + 6 * 4 * 4 * 5 * 9
    attention = 25 * 25 * (8 + 7)
    assert macs(Products(), torch.ones(3, 4, 9, 9)) == convs + 25 * 8 * 7 + attention + 25 * 3 * 7


def test_macs_of_attention_in_one_call():
    """A layer whose fast path hides its products from whoever looks at calls."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    projections, attention, feed_forward = 4 * 16 * 16, 2 * 10 * 16, 2 * 16 * 32
    expected = 10 * (projections + attention + feed_forward)
    assert macs(layer, torch.zeros(2, 10, 16)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def kept(model: nn.Module) -> dict[str, float]:
    return count(model, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("kind", [Residual, Mobile, Grouped, Flat])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_half_of_the_macs_within_the_tolerance_where_channels_are_free(kind, scope):
    before = kept(made(kind))
    stage = PruneChannels(L2(), macs="2x", scope=scope, round_to=1, tolerance=0.15)
    outcome = run(stage, made(kind))
    after = kept(outcome.artifact.model)
    assert 0.85 * before["macs"] / 2 <= after["macs"] <= before["macs"] / 2
    assert not outcome.warnings


def test_the_least_pruning_that_keeps_the_limit():
    """One block of the ranking fewer would be over it."""
    before = kept(made(Residual))["macs"]
    outcome = run(PruneChannels(L2(), macs=0.6, scope="global"), made(Residual))
    after = kept(outcome.artifact.model)["macs"]
    options = set()
    for sparsity in torch.linspace(0.15, 0.9, 16).tolist():
        with suppress(CheckFailedError):  # too little to remove a block
            model = run(PruneChannels(L2(), sparsity, scope="global"), made(Residual))
            options.add(kept(model.artifact.model)["macs"])
    assert after == max(value for value in options if value <= 0.6 * before)


def test_limits_hold_together_and_a_ratio_saves_the_last_layer():
    model = made(Residual)
    with torch.no_grad():
        model.inner[0].weight[8:] *= 1e-3  # nearly all of it looks useless
    stage = PruneChannels(L2(), macs=0.6, scope="global", round_to=1)
    gutted = run(stage, model).artifact.model
    saved = run(replace(stage, max_layer_sparsity=0.4), model).artifact.model
    assert gutted.inner[0].out_channels < 0.6 * 24 <= saved.inner[0].out_channels
    before = kept(model)
    both = run(replace(stage, params=0.3), model).artifact.model
    assert kept(both)["macs"] <= 0.6 * before["macs"]
    assert kept(both)["params"] <= 0.3 * before["params"] < kept(gutted)["params"]


def test_bytes_are_those_of_exported_files():
    weighed = []

    def export_bytes(artifact):
        weighed.append(artifact)
        return 1000 + 4 * sum(p.numel() for p in artifact.model.parameters())

    own = replace(context(), export_bytes=export_bytes)
    stage = PruneChannels(L2(), onnx_bytes="2x", scope="global", round_to=1)
    start = trained(made(Residual))
    result = stage.run({"model": start}, own).artifact
    assert export_bytes(result) <= export_bytes(start) / 2 <= 1.05 * export_bytes(result)
    assert stage.weighs_files
    assert not PruneChannels(L2(), macs="2x").weighs_files
    edits = {len(artifact.edits) for artifact in weighed}
    assert edits == {0, 1}


def clocked(stage, *, luck=1.0):
    """The stage on a machine where a model's time is a tenth plus its share of the products, and
    where the first look at a model says `luck` of that; the result, and what was measured.
    """
    before, looks = kept(made(Residual))["macs"], {}

    def against(original):
        assert kept(original.model)["macs"] == before

        def share(artifact):
            time = 0.1 + 0.9 * kept(artifact.model)["macs"] / before
            looks.setdefault(time, []).append(artifact)
            return time * (luck if len(looks[time]) == 1 else 1.0)

        return share

    own = replace(context(), timed_against=against)
    return stage.run({"model": trained(made(Residual))}, own), looks


def test_a_limit_of_time_is_kept_by_the_least_pruning():
    stage = PruneChannels(L2(), latency=0.7, scope="global", round_to=1)
    outcome, looks = clocked(stage)
    table = outcome.tables["limits"]
    (chosen,) = [row for row in table if row["chosen"]]
    before = kept(made(Residual))["macs"]
    assert chosen["latency"] == pytest.approx(
        0.1 + 0.9 * kept(outcome.artifact.model)["macs"] / before
    )
    assert 0.95 * 0.7 < chosen["latency"] <= 0.7
    slower = [row for row in table if row["macs"] > chosen["macs"]]
    assert slower
    assert all(row["latency"] > 0.7 for row in slower)
    assert not outcome.warnings
    assert sorted(len(times) for times in looks.values()) == [1] * (len(table) - 2) + [2]
    assert stage.times_files
    assert not PruneChannels(L2(), macs="2x").times_files
    both, _ = clocked(replace(stage, latency="1.1x", macs=0.4))
    assert kept(both.artifact.model)["macs"] <= 0.4 * before


def test_a_time_that_was_luck_is_told():
    outcome, _ = clocked(PruneChannels(L2(), latency=0.7, scope="global", round_to=1), luck=0.9)
    (warning,) = outcome.warnings
    assert "latency is 0.7" in warning
    assert "when measured again" in warning
    assert "over its limit of 0.700" in warning


def test_a_limit_of_time_is_refused_where_it_cannot_be_taken():
    with pytest.raises(UserError, match=r"latency must be a share in \(0, 1\) or a factor.*got 5"):
        PruneChannels(L2(), latency=5)
    with pytest.raises(UserError, match=r"latency=0.100 cannot be reached: .* at least 0\.\d{3}"):
        clocked(PruneChannels(L2(), latency="10x"))
    with pytest.raises(CheckFailedError, match="latency needs an exporter"):
        run(PruneChannels(L2(), latency=0.5), made(Residual))


def test_a_limit_that_steps_undercut_by_far_is_told():
    outcome = run(PruneChannels(L2(), macs=0.95), made(Residual))
    assert any("below its limit" in warning for warning in outcome.warnings)


def test_limits_that_cannot_be_kept_name_the_least():
    with pytest.raises(UserError, match=r"macs=\d.* cannot be reached.* at least \d.*coupled"):
        run(PruneChannels(L2(), macs=10), made(Residual))
    with pytest.raises(UserError, match=r"nothing to prune: params is .* already"):
        run(PruneChannels(L2(), params=10**9), made(Residual))


def test_channels_below_a_threshold_go_in_full_steps():
    model = made(Flat)
    with torch.no_grad():
        model.stem[0].weight[:11] = 1e-4
    for round_to, width in ((1, 5), (4, 8), (8, 8)):
        stage = PruneChannels(Magnitude(), threshold=0.01, round_to=round_to, min_channels=1)
        result = run(stage, model).artifact.model
        assert result.stem[0].out_channels == width
        assert result.fc1.out_features == 24


def test_idle_channels_go_by_two_thresholds():
    model = made(Flat)
    with torch.no_grad():
        model.stem[1].weight[3:5] = 0.0
        model.stem[1].bias[3:5] = -1.0
    stage = PruneChannels(
        Magnitude(), threshold=1e-6, activation_threshold=0.001, round_to=1, min_channels=1
    )
    outcome = run(stage, model)
    assert outcome.artifact.edits[-1]["removed"]["stem.0"]["out"] == [3, 4]


@pytest.mark.parametrize("criterion", [
    Random("channel"), Taylor(48), Snip(48), Grasp(48), Wanda(48), SparseGpt(48),
    MeanActivation(48), Apoz(48), Mixed(Magnitude(), MeanActivation(48)), BatchNormScale(),
], ids=lambda c: type(c).__name__)  # fmt: skip
def test_every_criterion_feeds_the_same_graph(criterion):
    stage = PruneChannels(criterion, macs="2x", scope="global", skip=["fc"], round_to=1)
    result = run(stage, made(Residual)).artifact.model
    assert kept(result)["macs"] <= kept(made(Residual))["macs"] / 2


def test_a_silent_channel_is_the_first_to_go():
    model = made(Residual)
    with torch.no_grad():
        model.inner[1].weight[7] = 0.0
        model.inner[1].bias[7] = -1.0
    for criterion in (Apoz(48), MeanActivation(48), Taylor(48), BatchNormScale()):
        stage = PruneChannels(criterion, 0.05, round_to=1, skip=["stem.0", "fc"])
        edit = run(stage, model).artifact.edits[-1]
        assert edit["removed"]["inner.0"]["out"] == [7]


@pytest.mark.parametrize("value", [0, -3, 1.0, 1.5, 0.0, "x", "1x", "0.5x", "half", True, [2]])
def test_no_limit(value):
    with pytest.raises(UserError, match="macs must be an integer above 0, a share"):
        check_limit("macs", value)


def test_what_a_limit_allows():
    assert (most("4x", 100.0), most(0.3, 100.0), most(70, 100.0)) == (25.0, 30.0, 70.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "exactly one target must be set.* got none"),
        ({"sparsity": 0.5, "macs": "2x"}, "got sparsity and macs"),
        ({"threshold": 0.5, "sparsity": 0.5}, "got sparsity and threshold"),
        ({"sparsity": 0.5, "activation_threshold": 0.5}, "needs threshold: set both"),
        ({"macs": "2x", "max_layer_sparsity": 1.0}, "max_layer_sparsity must be"),
    ],
)
def test_targets_that_contradict_each_other(options, text):
    with pytest.raises(UserError, match=text):
        PruneChannels(L2(), **options)


def test_a_mask_takes_part_in_no_count():
    first = Prune(Magnitude(), sparsity=0.5).run({"model": trained(made(Residual))}, context())
    assert kept(first.artifact.model) == kept(made(Residual))
