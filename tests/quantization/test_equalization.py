"""Cross-layer equalization: against slow loops, the function unchanged, lower error per tensor."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from compressbench.core.edits import apply_mask_, set_mask_
from compressbench.core.grid import Grid, choose_scale, round_to_grid
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.preparation.equalization import equalize_
from compressbench.quantization.preparation.folding import fold_batchnorm_
from tests.quantization.preparation_zoo import (
    EXPECTED,
    SHAPE,
    Residual,
    digits,
    make,
    noise,
    spread_,
    trained,
)

EXAMPLE = torch.zeros(2, *SHAPE)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def folded(kind: type[nn.Module], seed: int) -> nn.Module:
    model = make(kind, seed)
    fold_batchnorm_(model, EXAMPLE)
    return model


def output_ranges(layer: nn.Module) -> list[float]:
    return [row.abs().max().item() for row in layer.weight]


def input_ranges(layer: nn.Module) -> list[float]:
    """max|w| of every input channel, weight by weight."""
    groups = getattr(layer, "groups", 1)
    outputs, inputs = layer.weight.shape[:2]
    found = [0.0] * (inputs * groups)
    for o in range(outputs):
        for i in range(inputs):
            channel = o // (outputs // groups) * inputs + i
            found[channel] = max(found[channel], layer.weight[o, i].abs().max().item())
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", EXPECTED)
def test_the_function_stays_and_the_ranges_meet(kind, seed):
    model = folded(kind, seed)
    before, weights = model(noise()), {n: p.clone() for n, p in model.named_parameters()}
    pairs = equalize_(model, EXAMPLE)
    assert set(pairs) == EXPECTED[kind][1]
    after = model(noise())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * before.abs().max().item())
    for a, b in pairs:
        first, second = model.get_submodule(a), model.get_submodule(b)
        for left, right in zip(output_ranges(first), input_ranges(second), strict=True):
            assert left == pytest.approx(right, rel=1e-3) or 0.0 in (left, right)
    touched = {name for pair in pairs for name in pair}
    for name, value in model.named_parameters():
        if name.rpartition(".")[0] not in touched:
            assert torch.equal(value, weights[name])


def test_one_pair_in_a_closed_form():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    with torch.no_grad():
        net[0].weight[2] = 0.0  # a dead channel
        net[2].weight[:, 4] = 0.0  # one that is not read
    old = deepcopy(net)
    assert equalize_(net, torch.zeros(2, 5)) == [("0", "2")]
    for i in range(7):
        a, b = old[0].weight[i].abs().max(), old[2].weight[:, i].abs().max()
        s = 1.0 if i in (2, 4) else (a * b).sqrt() / b
        torch.testing.assert_close(net[0].weight[i], old[0].weight[i] / s)
        torch.testing.assert_close(net[0].bias[i], old[0].bias[i] / s)
        torch.testing.assert_close(net[2].weight[:, i], old[2].weight[:, i] * s)


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.Sigmoid(), nn.BatchNorm2d(4), nn.Hardtanh()])
def test_what_does_not_scale_separates(between):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.Conv2d(4, 2, 1)).eval()
    before = deepcopy(net.state_dict())
    assert equalize_(net, EXAMPLE) == []
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_masked_weights_stay_zero():
    model = make(Residual, 4)
    for layer in (model.one, model.two):
        generator = torch.Generator().manual_seed(5)
        set_mask_(layer, torch.rand(layer.weight.shape, generator=generator) < 0.4)
    fold_batchnorm_(model, EXAMPLE)
    assert equalize_(model, EXAMPLE) == [("one", "two")]
    for layer in (model.one, model.two):
        weight = layer.weight.clone()
        apply_mask_(layer)
        assert torch.equal(layer.weight, weight)


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """Every weight to the nearest number of a grid with one scale per tensor."""
    model, grid = deepcopy(model), Grid(bits, "tensor")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            scale, _ = choose_scale(layer.weight, grid, MinMax())
            layer.weight.data = round_to_grid(layer.weight, scale, grid).weight
    return model


def test_per_tensor_it_restores_a_depthwise_net_whose_channels_differ():
    model, split = trained(), digits().split("validation")
    images = digits().prepare(split.inputs)
    fold_batchnorm_(model, images[:2])
    spread_(model, decades=2.0)
    equalized = deepcopy(model)
    pairs = equalize_(equalized, images[:2])
    assert len(pairs) == 5  # stem, two depthwise, two pointwise, the classifier behind the pooling
    with torch.no_grad():
        exact = model(images)
        plain, better = rounded(model, 8)(images), rounded(equalized, 8)(images)
    accuracies = [
        float((y.argmax(1) == split.targets).float().mean()) for y in (exact, plain, better)
    ]
    errors = [float((y - exact).square().mean()) for y in (plain, better)]
    assert errors[1] < 0.05 * errors[0]
    assert accuracies[0] - accuracies[2] < 0.01
    assert accuracies[0] - accuracies[1] > 0.05
