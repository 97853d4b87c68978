"""Criteria that look at the model at work, against slow loops in float64 and torch's autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.pruning.criteria.apoz import Apoz
from compressbench.pruning.criteria.batchnorm_scale import BatchNormScale
from compressbench.pruning.criteria.grasp import Grasp
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.criteria.mean_activation import MeanActivation
from compressbench.pruning.criteria.mixed import Mixed, ranks
from compressbench.pruning.criteria.random import Random
from compressbench.pruning.criteria.scores import of_channels, of_weights, scores_of
from compressbench.pruning.criteria.snip import Snip
from compressbench.pruning.criteria.sparsegpt import SparseGpt
from compressbench.pruning.criteria.taylor import Taylor
from compressbench.pruning.criteria.wanda import Wanda
from tests.pruning.criteria.criteria_net import (
    ALL,
    IMAGES,
    Net,
    context,
    images,
    layers,
    net,
    seen_inputs,
)
from tests.two_ranks import on_two_ranks


def slow_norms(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """‖x‖ of what each weight of a convolution meets, position by position."""
    padded = F.pad(inputs, (layer.padding[1],) * 2 + (layer.padding[0],) * 2).double()
    height, width = layer(inputs).shape[2:]
    out, inner, kh, kw = layer.weight.shape
    squares = torch.zeros(layer.weight.shape, dtype=torch.float64)
    for o in range(out):
        for i in range(inner):
            channel = o // (out // layer.groups) * inner + i
            for a in range(kh):
                for b in range(kw):
                    for y in range(height):
                        for x in range(width):
                            value = padded[
                                :,
                                channel,
                                y * layer.stride[0] + a * layer.dilation[0],
                                x * layer.stride[1] + b * layer.dilation[1],
                            ]
                            squares[o, i, a, b] += value.square().sum()
    return squares.sqrt()


def test_wanda_equals_a_slow_loop():
    model = net()
    found = Wanda(IMAGES, 8).of_model(model, layers(model, *ALL), context())
    for name in ("stem", "group"):
        layer = model.get_submodule(name)
        expected = layer.weight.abs() * slow_norms(layer, seen_inputs(model, name)[0])
        torch.testing.assert_close(found[name].double(), expected.detach())
    rows = torch.cat([x.reshape(-1, 4) for x in seen_inputs(model, "twice")])
    torch.testing.assert_close(
        found["twice"].float(), (model.twice.weight.abs() * rows.norm(dim=0)).detach()
    )
    norms = seen_inputs(model, "up")[0].movedim(1, 0).flatten(1).norm(dim=1)
    expected = model.up.weight.abs() * norms.view(-1, 1, 1, 1)
    torch.testing.assert_close(found["up"].float(), expected.detach())


def outputs(model: Net) -> dict[str, list[Tensor]]:
    """What each layer hands on, channels last; the residual addition belongs to `group`."""
    x = images()[0]
    with torch.no_grad():
        stem = F.relu(model.bn(model.stem(x)))
        group = F.relu(model.bn2(model.group(stem)) + stem)
        first = F.relu(model.twice(group.movedim(1, -1)))
        second = F.relu(model.twice(first))
        up = F.relu6(model.up(second.movedim(-1, 1)))
        fc = model.fc(up.mean((2, 3)))
    return {
        "stem": [stem.movedim(1, -1)], "group": [group.movedim(1, -1)],
        "twice": [first, second], "up": [up.movedim(1, -1)], "fc": [fc],
    }  # fmt: skip


def test_activations_are_those_behind_norm_addition_and_relu():
    model = net()
    means = MeanActivation(IMAGES, 8).of_model(model, layers(model, *ALL), context())
    zeros = Apoz(IMAGES, 8).of_model(model, layers(model, *ALL), context())
    for name, tensors in outputs(model).items():
        values = torch.cat([t.reshape(-1, t.shape[-1]) for t in tensors]).double()
        torch.testing.assert_close(means[name], values.abs().mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(zeros[name], (values != 0).double().mean(0))
    assert (zeros["fc"] == 1).all()
    assert (zeros["stem"] < 1).any()


def test_a_channels_score_is_that_of_each_of_its_weights():
    model = net()
    scores = scores_of(MeanActivation(IMAGES), model, layers(model, *ALL), context())
    for name, layer in layers(model, *ALL).items():
        spread = of_weights(layer, scores[name])
        channels = of_channels(layer, scores[name])
        for channel, value in enumerate(channels.tolist()):
            if name == "up":  # [in, out / groups, ..]: group g has outputs 3 g to 3 g + 2
                group, own = divmod(channel, 3)
                weights = spread[2 * group : 2 * group + 2, own]
            else:
                weights = spread[channel]
            assert weights.flatten().tolist() == pytest.approx([value] * weights.numel())
    weights = Magnitude()(layers(model, "up"), context())["up"]
    expected = [weights[2 * (c // 3) : 2 * (c // 3) + 2, c % 3].sum() for c in range(6)]
    torch.testing.assert_close(of_channels(model.up, weights).float(), torch.stack(expected))


def test_the_scale_of_the_norm_behind_a_layer():
    model = net()
    found = BatchNormScale().of_model(model, layers(model, "stem", "group"), context())
    assert torch.equal(found["stem"], model.bn.weight.abs())
    assert torch.equal(found["group"], model.bn2.weight.abs())
    with pytest.raises(UserError, match="no BatchNorm with a scale follows twice, fc"):
        BatchNormScale().of_model(model, layers(model, "twice", "fc", "stem"), context())


def test_random_is_seeded_and_has_a_draw_for_each_channel():
    model = net()
    own = layers(model, *ALL)
    first, again = Random()(own, context()), Random()(own, context())
    other = Random()(own, replace(context(), seed=4))
    assert all(torch.equal(first[n], again[n]) for n in ALL)
    assert all(not torch.equal(first[n], other[n]) for n in ALL)
    assert {n: len(s) for n, s in Random("channel")(own, context()).items()} == {
        "stem": 4, "group": 4, "twice": 4, "up": 6, "fc": 3,
    }  # fmt: skip


def test_mixed_joins_two_criteria():
    model = net()
    own = layers(model, "stem", "fc")
    activity = MeanActivation(IMAGES).of_model(model, own, context())
    product = Mixed(Magnitude(), MeanActivation(IMAGES)).of_model(model, own, context())
    by_rank = Mixed(Magnitude(), MeanActivation(IMAGES), "rank").of_model(model, own, context())
    for name, layer in own.items():
        weight = layer.weight.detach().abs()
        spread = activity[name].view(-1, *[1] * (weight.ndim - 1)).expand(weight.shape).float()
        expected = weight / weight.mean() * spread / spread.mean()
        torch.testing.assert_close(product[name], expected)
        for index in ((0,) * weight.ndim, (2, 1, *[0] * (weight.ndim - 2))):
            share = [
                ((v < v[index]).sum() + (v == v[index]).sum() / 2) / v.numel()
                for v in (weight, spread)
            ]
            torch.testing.assert_close(by_rank[name][index], (share[0] + share[1]) / 2)
    assert ranks(torch.tensor([3.0, 1.0, 1.0, 5.0])).tolist() == [0.625, 0.25, 0.25, 0.875]


def test_what_is_never_called_cannot_be_judged():
    model = net()
    model.idle = nn.Linear(4, 4)
    for criterion in (Wanda(8), MeanActivation(8)):
        with pytest.raises(UserError, match="idle is never called"):
            criterion.of_model(model, layers(model, "idle"), context())


@pytest.mark.parametrize("kind", [Taylor, Snip, Grasp, Wanda, MeanActivation, Apoz, SparseGpt])
def test_without_calibration_images_there_is_no_criterion(kind):
    with pytest.raises(UserError, match=r"images must be an integer of at least \d, got 0"):
        kind(images=0)


SHARDED = (Snip(IMAGES), Grasp(IMAGES), Wanda(IMAGES), MeanActivation(IMAGES), Apoz(IMAGES))


def scored(criterion) -> dict[str, Tensor]:
    model = net()
    return criterion.of_model(model, layers(model, "stem", "group", "fc"), context())


def one_rank(rank: int):
    model = net()
    own = layers(model, "stem", "fc")
    found = [scored(criterion) for criterion in (*SHARDED, Taylor(IMAGES, 6), SparseGpt(IMAGES))]
    masks = {name: torch.ones_like(m.weight, dtype=torch.bool) for name, m in own.items()}
    for mask in masks.values():
        mask[:, ::2] = False
    found.append(SparseGpt(IMAGES).update(model, masks, context()))
    return [{n: v.tolist() for n, v in scores.items()} for scores in found]


def test_two_ranks_hold_the_scores_of_all_images(tmp_path):
    results = on_two_ranks(one_rank, tmp_path)
    first, second = results[0], results[1]
    assert first == second
    for criterion, scores in zip(SHARDED, first, strict=False):
        for name, alone in scored(criterion).items():
            together = torch.tensor(scores[name], dtype=alone.dtype)
            torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-7)
