"""What widths cost: the measured damage is that of the channels set to zero, and it ranks."""

from __future__ import annotations

import itertools
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.types import Context, Runtime
from compressbench.data.calibration import training_batches
from compressbench.pruning.channels import measured_widths
from compressbench.pruning.channels.cutter import Cutter
from compressbench.pruning.channels.limits import macs
from compressbench.pruning.channels.measured_widths import (
    BATCH,
    IMAGES,
    WIDTHS,
    by_damage,
    measured_at,
    slopes,
)
from compressbench.pruning.channels.ranking import Ranked
from compressbench.pruning.channels.settling import example_inputs, settled_coupling
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.prune_channels import PruneChannels
from tests.pruning.channel_zoo import Noise, Residual, build, conv, trained


def context() -> Context:
    return Context(Noise(), Runtime(), 0, Path("unused"), build)


@pytest.mark.parametrize("seed", range(20))
def test_slopes_are_those_of_the_lower_convex_hull(seed):
    generator = torch.Generator().manual_seed(seed)
    count = 1 + seed % 7
    saved = [0.0, *torch.rand(count, generator=generator).cumsum(0).tolist()]
    cost = [0.0, *torch.rand(count, generator=generator).tolist()]

    def hull(x: float) -> float:  # least of all chords around x
        return min(
            cost[i] + (cost[j] - cost[i]) * (x - saved[i]) / (saved[j] - saved[i])
            for i in range(count + 1) for j in range(i + 1, count + 1)
            if saved[i] <= x <= saved[j]
        )  # fmt: skip

    found = slopes(list(zip(saved, cost, strict=True)))
    expected = [(hull(b) - hull(a)) / (b - a) for a, b in itertools.pairwise(saved)]
    assert found == pytest.approx(expected)
    assert list(found) == sorted(found)


def inner_layer(step: int) -> tuple[Ranked, Cutter]:
    """That of a residual block, its channels in their order, in blocks of `step`."""
    torch.manual_seed(3)
    start = trained(Residual())
    original = deepcopy(start.model).eval()
    example = example_inputs(Noise().spec)
    found = settled_coupling(original, example)
    (part,) = (p for p in found.parts if p.root.startswith("inner"))
    one = Ranked.of(part, lambda part, atom: float(atom), step, step)
    return one, Cutter(start, original, found, example)


def test_the_cost_of_a_width_is_what_its_channels_at_zero_cost():
    one, cutter = inner_layer(8)
    part, original = one.part, cutter.model
    (scored,) = by_damage([one], cutter, ["macs"], context())

    going: list[int] = []
    points = [(0.0, 0.0)]
    batches = [x for x, _ in training_batches(context(), IMAGES, BATCH)]
    for block in one.blocks:
        going += [channel for atom in block for channel in part.channels["inner.0"][atom]]
        silent, whole = deepcopy(original).train(), deepcopy(original).train()
        with torch.no_grad():
            for parameter in (*silent.inner[1].parameters(), silent.inner[0].weight):
                parameter[going] = 0.0
            moved = [
                F.kl_div(silent(x).log_softmax(1), whole(x).log_softmax(1), log_target=True,
                         reduction="batchmean")
                for x in batches
            ]  # fmt: skip
        left = len(part.atoms) - len(going)
        points.append(
            (9 * 64 * 2 * 32 * len(going), float(sum(moved) / len(moved)))
        )  # 3x3 kernels on 8x8 places, into the layer and out of it
        assert left >= 8
    assert scored.scores == pytest.approx(slopes(points), rel=1e-3)
    assert scored.blocks == one.blocks


@pytest.mark.parametrize("blocks", [0, 1, 2, 7, WIDTHS, WIDTHS + 1, 3 * WIDTHS - 5, 320])
def test_few_widths_are_all_measured_and_many_evenly(blocks):
    found = measured_at(blocks)
    if blocks <= WIDTHS:
        assert found == list(range(1, blocks + 1))
    else:
        gaps = [b - a for a, b in itertools.pairwise([0, *found])]
        assert found[-1] == blocks
        assert len(found) == WIDTHS
        assert max(gaps) - min(gaps) <= 1


def test_between_measured_widths_costs_are_linear(monkeypatch):
    """Every block gets the slope of the chord between the measured ones around it."""
    one, cutter = inner_layer(2)
    (every,) = by_damage([one], cutter, ["macs"], context())
    monkeypatch.setattr(measured_widths, "WIDTHS", 3)
    (few,) = by_damage([one], cutter, ["macs"], context())
    assert few.blocks == every.blocks == one.blocks
    assert len(one.blocks) == 11
    assert [len(list(same)) for _, same in itertools.groupby(few.scores)] == [4, 3, 4]
    assert sum(few.scores) == pytest.approx(sum(every.scores)), "the whole way costs the same"


class Idle(nn.Module):
    """Two inner layers; most channels of the second reach nothing, though their weights are the
    largest of the model.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.first, self.second = conv(3, 32), conv(32, 32), conv(32, 32)
        self.fc = nn.Linear(32, 3)
        with torch.no_grad():
            self.second[0].weight *= 100.0
            self.second[0].weight[:24] *= 0.5  # still fifty times those of the first layer
            self.fc.weight[:, :24] = 0.0

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(F.relu(self.stem(x))))))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(("scope", "widths"), [("global", (16, 32)), ("sensitivity", (32, 8))])
def test_it_narrows_what_answers_do_not_need_whatever_its_norm(scope, widths):
    stage = PruneChannels(
        L2(), sparsity=None, macs=0.65, scope=scope, normalize=False, skip=["stem*"]
    )
    start = trained(Idle())
    model = stage.run({"model": start}, context()).artifact.model
    assert (model.first[0].out_channels, model.second[0].out_channels) == widths


def test_it_needs_a_share_or_a_limit():
    with pytest.raises(UserError, match="threshold"):
        PruneChannels(L2(), sparsity=None, threshold=0.1, scope="sensitivity")
    with pytest.raises(UserError, match="sensitivity"):
        PruneChannels(L2(), scope="all")


def test_what_still_fits_under_a_limit_stays():
    """One ranking stops with a block of any size: smaller ones come back as far as they fit."""
    torch.manual_seed(5)
    start = trained(Residual())
    limit = 0.6
    stage = PruneChannels(L2(), sparsity=None, macs=limit, scope="global", round_to=4)
    model = stage.run({"model": start}, context()).artifact.model
    example = torch.zeros(1, 3, 8, 8)
    allowed = limit * macs(Residual(), example)
    widths = (model.stem[0].out_channels, model.inner[0].out_channels)
    assert macs(model, example) <= allowed

    def products(stem: int, inner: int) -> int:  # 3x3 kernels on 8x8 places, and the classifier
        return 9 * 64 * (3 * stem + 2 * stem * inner) + 3 * stem

    assert products(*widths) == macs(model, example)
    wider = [(widths[0] + 4, widths[1]), (widths[0], widths[1] + 4)]
    assert all(products(*w) > allowed for w in wider if w[0] <= 32 and w[1] <= 24)
