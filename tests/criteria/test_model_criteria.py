"""Criteria that look at the model at work, against slow loops in float64 and torch's autograd."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from two_ranks import on_two_ranks

from compressbench.core import Context, DataSpec, Runtime, Split, UserError
from compressbench.criteria.apoz import Apoz
from compressbench.criteria.batchnorm_scale import BatchNormScale
from compressbench.criteria.grasp import Grasp
from compressbench.criteria.magnitude import Magnitude
from compressbench.criteria.mean_activation import MeanActivation
from compressbench.criteria.mixed import Mixed, ranks
from compressbench.criteria.random import Random
from compressbench.criteria.scores import of_channels, of_weights, scores_of
from compressbench.criteria.snip import Snip
from compressbench.criteria.sparsegpt import SparseGpt
from compressbench.criteria.taylor import Taylor
from compressbench.criteria.wanda import Wanda

IMAGES = 22


@dataclass(frozen=True)
class Noise:
    @property
    def spec(self) -> DataSpec:
        return DataSpec("noise", (2, 7, 5), ("a", "b", "c"), (0.5, 0.5), (0.25, 0.25))

    def split(self, name: str) -> Split:
        assert name == "train", "only training images may be seen"
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randint(0, 256, (IMAGES, 2, 7, 5), generator=generator)
        return Split(inputs.to(torch.uint8), torch.arange(IMAGES) % 3)

    def prepare(self, inputs: Tensor) -> Tensor:
        return (inputs.float() / 255 - 0.5) / 0.25


class Net(nn.Module):
    """Strides, padding, dilation, groups, a shortcut, a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0))
        self.bn = nn.BatchNorm2d(4)
        self.group = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.twice = nn.Linear(4, 4)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn2(self.group(x)) + x)
        x = F.relu(self.twice(F.relu(self.twice(x.movedim(1, -1)))))
        return self.fc(F.relu6(self.up(x.movedim(-1, 1))).mean((2, 3)))


def context() -> Context:
    return Context(Noise(), Runtime(), 3, Path(), lambda config: config)


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for norm in (model.bn, model.bn2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model.eval()


def layers(model: nn.Module, *names: str) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in names}


def images() -> tuple[Tensor, Tensor]:
    own = Noise()
    split = own.split("train")
    return own.prepare(split.inputs), split.targets


ALL = ("stem", "group", "twice", "up", "fc")


def test_snip_is_the_gradient_of_the_mean_loss_whatever_the_batches():
    model = net()
    inputs, targets = images()
    F.cross_entropy(model(inputs), targets).backward()
    expected = {n: (m.weight * m.weight.grad).abs() for n, m in layers(model, *ALL).items()}
    for batch_size in (5, 64):
        found = Snip(IMAGES, batch_size).of_model(net(), layers(net(), *ALL), context())
        for name in ALL:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)


def test_taylor_is_the_mean_square_over_batches():
    model = net()
    inputs, targets = images()
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(3))
    expected = {name: torch.zeros_like(m.weight) for name, m in layers(model, *ALL).items()}
    batches = order.split(6)
    for batch in batches:
        model.zero_grad()
        F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        for name, layer in layers(model, *ALL).items():
            expected[name] += (layer.weight * layer.weight.grad).detach() ** 2 / len(batches)
    found = Taylor(IMAGES, 6).of_model(net(), layers(net(), *ALL), context())
    for name in ALL:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-9)


def test_taylor_estimates_what_the_loss_changes_and_snip_lets_batches_cancel():
    model = net()
    inputs, targets = images()
    found = Taylor(IMAGES, IMAGES).of_model(model, layers(model, "fc"), context())["fc"]
    with torch.no_grad():
        loss = F.cross_entropy(model(inputs), targets)
        model.fc.weight[1, 2] *= 1 - 1e-3
        change = float(F.cross_entropy(model(inputs), targets) - loss) / 1e-3
    assert change**2 == pytest.approx(float(found[1, 2]), rel=0.05)
    one = Taylor(IMAGES, IMAGES).of_model(net(), layers(net(), *ALL), context())
    many = Taylor(IMAGES, 2).of_model(net(), layers(net(), *ALL), context())
    snip = Snip(IMAGES, 2).of_model(net(), layers(net(), *ALL), context())
    for name in ALL:
        torch.testing.assert_close(one[name].sqrt(), snip[name], rtol=1e-3, atol=1e-6)
        assert many[name].sum() > one[name].sum()


def gradients(model: nn.Module, names: tuple[str, ...], temperature: float) -> list[Tensor]:
    inputs, targets = images()
    loss = F.cross_entropy(model(inputs.double()) / temperature, targets)
    return list(torch.autograd.grad(loss, [model.get_submodule(n).weight for n in names]))


@pytest.mark.parametrize(("names", "temperature"), [(ALL, 1.0), (ALL, 200.0), (("stem",), 2.0)])
def test_grasp_is_the_weight_times_finite_differences_of_gradients(names, temperature):
    model = net().double()
    weights = [model.get_submodule(name).weight for name in names]
    step = gradients(model, names, temperature)
    length = 1e-6 / float(torch.cat([g.flatten() for g in step]).norm())
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, direction in zip(weights, step, strict=True):
                weight += sign * length * direction
        ends.append(gradients(model, names, temperature))
        with torch.no_grad():
            for weight, direction in zip(weights, step, strict=True):
                weight -= sign * length * direction
    for batch_size in (5, 64):
        found = Grasp(IMAGES, batch_size, temperature).of_model(
            net(), layers(net(), *names), context()
        )
        for name, weight, high, low in zip(names, weights, *ends, strict=True):
            expected = (weight * (high - low) / (2 * length)).detach()
            tolerance = 2e-3 * float(expected.abs().max())
            torch.testing.assert_close(found[name].double(), expected, rtol=1e-3, atol=tolerance)
        assert len(names) == 1 or any(bool((score < 0).any()) for score in found.values())


def test_grasp_is_half_of_what_the_gradient_loses_with_a_weight():
    found = Grasp(IMAGES, temperature=3.0).of_model(net(), layers(net(), *ALL), context())
    for name, index in (("fc", (1, 2)), ("stem", (2, 0, 1, 1))):
        model, squares = net().double(), []
        for share in (1e-5, -2e-5):  # one after the other: less of the weight, then more
            with torch.no_grad():
                model.get_submodule(name).weight[index] *= 1 - share
            squares.append(sum(float(g.square().sum()) for g in gradients(model, ALL, 3.0)))
        lost = (squares[1] - squares[0]) / 2e-5
        assert lost == pytest.approx(2 * float(found[name][index]), rel=1e-2)


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


def seen_inputs(model: nn.Module, name: str) -> list[Tensor]:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        model(images()[0])
    handle.remove()
    return seen


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


def hessian_of(model: nn.Module, name: str) -> Tensor:
    rows = seen_inputs(model, name)[0].double()
    if name == "stem":
        rows = F.unfold(rows, (3, 2), stride=(2, 1), padding=(1, 0)).transpose(1, 2)
    rows = rows.reshape(-1, rows.shape[-1])
    return rows.T @ rows


@pytest.mark.parametrize("name", ["stem", "fc"])
def test_sparsegpt_scores_and_moves_equal_a_slow_loop(name):
    model = net()
    layer = model.get_submodule(name)
    criterion = SparseGpt(IMAGES, damping=0.02, drift=False)
    hessian = hessian_of(model, name)
    hessian += torch.eye(len(hessian)) * 0.02 * hessian.diagonal().mean()
    weight = layer.weight.detach().double().flatten(1)
    scores = torch.zeros_like(weight)
    for j in range(weight.shape[1]):  # the error of the outputs when w_j alone goes, at best
        rest = torch.linalg.inv(hessian[j:, j:])
        scores[:, j] = weight[:, j] ** 2 / rest[0, 0]
    found = criterion.of_model(model, layers(model, name), context())[name]
    torch.testing.assert_close(found.flatten(1).double(), scores, rtol=1e-3, atol=1e-6)

    for norm in (model.bn, model.bn2):
        norm.train().momentum = 0.0  # weights are fitted under the statistics of the batch
    batch_normed = hessian_of(model, name)
    model.eval()
    hessian = batch_normed + torch.eye(len(hessian)) * 0.02 * batch_normed.diagonal().mean()
    mask = scores > scores.median()
    moved = weight.clone()
    for j in range(weight.shape[1]):
        gone = torch.where(mask[:, j], 0.0, moved[:, j])
        rest = torch.linalg.inv(hessian[j:, j:])
        moved[:, j:] -= gone[:, None] * (rest[0] / rest[0, 0])
    masks = {name: mask.view_as(layer.weight)}
    result = criterion.update(model, masks, context())[name]
    assert not bool(result[~masks[name]].any())
    raw = batch_normed
    change, plain = moved - weight, weight * ~mask
    better = ((change @ raw) * change).sum(1) < ((plain @ raw) * plain).sum(1)
    assert bool(better.any())
    expected = torch.where(better[:, None], moved, weight * mask)
    torch.testing.assert_close(result.flatten(1).double(), expected, rtol=1e-3, atol=1e-5)


def test_sparsegpt_makes_up_for_earlier_layers():
    model = net()
    own = layers(model, "stem", "group", "fc")
    masks = {n: torch.rand(m.weight.shape) > 0.3 for n, m in own.items()}
    errors = []
    for drift in (True, False):
        pruned = net()
        weights = SparseGpt(IMAGES, drift=drift).update(model, masks, context())
        with torch.no_grad():
            for name, weight in weights.items():
                pruned.get_submodule(name).weight.copy_(weight)
            for layer in (pruned.bn, pruned.bn2):
                layer.train()
            errors.append(float((pruned(images()[0]) - model(images()[0])).square().mean()))
    assert errors[0] < errors[1]


def test_sparsegpt_says_which_layers_it_does_not_know():
    model = net()
    with pytest.raises(UserError, match="knows no ConvTranspose2d: skip up"):
        SparseGpt(IMAGES).of_model(model, layers(model, "up"), context())


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
