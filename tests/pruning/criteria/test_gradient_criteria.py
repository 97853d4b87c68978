"""SNIP, Taylor and GraSP: against loops over batches and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.pruning.criteria.grasp import Grasp
from compressbench.pruning.criteria.snip import Snip
from compressbench.pruning.criteria.taylor import Taylor
from tests.pruning.criteria.criteria_net import ALL, IMAGES, context, images, layers, net


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
