"""Trained grids: gradients against slow loops of the papers' formulas, rounding against grids."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compressbench.core.activation_quantizers import fake_quantize
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, rows, scale_of, step_limits
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.trained.lsq import Lsq, LsqSite, LsqWeight, start
from compressbench.quantization.trained.model import FakeQuantizedModel
from compressbench.quantization.trained.pact import Pact
from compressbench.quantization.trained.protocols import FixedSite
from compressbench.quantization.trained.straight_through import StraightThrough

GRIDS = [
    Grid(2, "tensor"),
    Grid(3, "channel", narrow=False),
    Grid(4, "group", 3),
    Grid(3, "channel", symmetric=False),
    Grid(2, "group", 2, symmetric=False),
]
SITES = [(0.11, 0, 4), (0.05, 7, 4), (0.013, 128, 8), (0.02, 0, 8)]


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def site(scale, zero_point, bits):
    return torch.tensor(scale), torch.tensor(zero_point, dtype=torch.uint8), bits


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gradients_of_a_learned_step_are_those_of_equation_3(grid):
    weight = weights(4, 6, 3, 1).double().requires_grad_()
    step, zero_point = start(weight, grid)
    module = LsqWeight(0.6 * step.double(), zero_point, grid)
    upstream = weights(4, 6, 3, 1, seed=1).double()
    (module(weight) * upstream).sum().backward()

    values, sent = (t.detach().reshape(module.step.numel(), -1) for t in (weight, upstream))
    passed = torch.zeros_like(values)
    for row, s in enumerate(module.step.detach().flatten().tolist()):
        z = None if zero_point is None else zero_point.flatten()[row]
        low, high = (limit.item() for limit in step_limits(grid, z))
        total = 0.0
        for column, (v, g) in enumerate(zip(values[row].tolist(), sent[row].tolist(), strict=True)):
            if v / s <= low:
                total += g * low
            elif v / s >= high:
                total += g * high
            else:
                total += g * (round(v / s) - v / s)
                passed[row, column] = g
        n, q_p = values.shape[1], 2 ** (grid.bits - 1) - 1
        expected = total / math.sqrt(n * q_p)
        assert module.step.grad.flatten()[row].item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(weight.grad.reshape(passed.shape), passed)
    assert 0 < (passed == 0).sum() < passed.numel(), "some are clipped, some are not"


@pytest.mark.parametrize(("scale", "zero_point", "bits"), SITES)
def test_gradients_of_a_learned_activation_step(scale, zero_point, bits):
    values = weights(5, 3, 7).requires_grad_()
    module = LsqSite(*site(scale, zero_point, bits))
    upstream = weights(5, 3, 7, seed=1)
    (module(values) * upstream).sum().backward()
    low, high = -zero_point, 2**bits - 1 - zero_point
    total, passed = 0.0, []
    for v, g in zip(values.flatten().tolist(), upstream.flatten().tolist(), strict=True):
        inside = low < v / scale < high
        total += g * (round(v / scale) - v / scale if inside else low if v < 0 else high)
        passed.append(g * inside)
    expected = total / math.sqrt(3 * 7 * max(-low, high))
    assert module.step.grad.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(values.grad.flatten(), torch.tensor(passed))


def test_weights_that_are_zero_do_not_pull_on_the_step():
    weight, mask = weights(3, 8), weights(3, 8, seed=2) > 0
    step, _ = start(weight * mask, Grid(3))
    few, _ = start(weight[:1, mask[0]], Grid(3))
    assert step[0].item() == pytest.approx(few.item())
    module = LsqWeight(step, None, Grid(3))
    out = module(weight * mask)
    assert not out[~mask].any()
    (out * ~mask).sum().backward()
    assert not module.step.grad.any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_step_starts_at_the_papers_value_or_where_nothing_is_clipped(bits):
    weight = weights(5, 40)
    step, _ = start(weight, Grid(bits))
    q_p = 2 ** (bits - 1) - 1
    for row, found in zip(weight.double(), step.flatten().tolist(), strict=True):
        paper = 2 * row.abs().mean().item() / math.sqrt(q_p)
        assert found == pytest.approx(min(paper, row.abs().max().item() / q_p))


grids = st.builds(
    Grid,
    st.integers(2, 8),
    st.sampled_from(["tensor", "channel"]),
    symmetric=st.booleans(),
    narrow=st.booleans(),
    power_of_two=st.booleans(),
) | st.builds(Grid, st.integers(2, 8), st.just("group"), st.just(2), symmetric=st.booleans())


methods = st.sampled_from([Lsq(), StraightThrough(MinMax())])


@settings(max_examples=40, deadline=None)
@given(grid=grids, seed=st.integers(0, 99), method=methods)
def test_what_is_computed_in_training_is_what_is_kept(grid, seed, method):
    weight = weights(3, 4, 3, seed=seed)
    weight[weights(3, 4, 3, seed=seed + 1) > 0.5] = 0.0
    weight[1] = 0.0
    module = method.weight(weight, grid)
    kept = module.grid_weight(weight)
    assert torch.equal(module(weight), kept.weight)
    assert not kept.weight[weight == 0].any()
    low, high = step_limits(grid, kept.zero_point)
    found = kept.steps.reshape(kept.scale.numel(), -1)
    assert (found >= low.reshape(-1, 1)).all()
    assert (found <= high.reshape(-1, 1)).all()
    if grid.power_of_two:
        assert torch.equal(torch.log2(kept.scale), torch.log2(kept.scale).round())


def test_a_power_of_two_is_rounded_up_and_still_learns():
    module = LsqWeight(torch.tensor([[0.3], [0.25]]), None, Grid(4, power_of_two=True))
    assert module.scale().tolist() == [[0.5], [0.25]]
    module.scale().sum().backward()
    assert module.step.grad.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_straight_through_scales_follow_the_weights(grid):
    module = StraightThrough(MinMax()).weight(weights(4, 6, 3), grid)
    for seed in (1, 2):
        weight = weights(4, 6, 3, seed=seed).requires_grad_()
        low, high = rows(weight, grid).aminmax(dim=1)
        scale, _ = scale_of(low, high, grid)
        assert torch.equal(module.grid_weight(weight).scale.flatten(), scale)
        upstream = weights(4, 6, 3, seed=3)
        module(weight).backward(upstream)
        assert torch.equal(weight.grad, upstream), "a range from minimum to maximum clips nothing"


@pytest.mark.parametrize(("scale", "zero_point", "bits"), SITES)
@pytest.mark.parametrize("method", [Lsq(), Pact(), StraightThrough(MinMax())])
def test_a_site_rounds_as_the_quantized_model_does(scale, zero_point, bits, method):
    values = 3 * weights(6, 50)
    module = method.activation(*site(scale, zero_point, bits), False)
    assert module.scale().item() == pytest.approx(scale, rel=1e-6)
    kept = module.scale().detach()
    expected = fake_quantize(values, kept, torch.tensor(zero_point, dtype=torch.uint8), bits)
    assert torch.equal(module(values), expected)
    assert not module(torch.zeros(2, 2)).any()


def test_a_fixed_site_passes_the_gradient_where_nothing_is_clipped():
    values = torch.tensor([[-9.0, -0.31, -0.2, 0.0, 0.4, 1.19, 1.3, 9.0]], requires_grad=True)
    FixedSite(*site(0.1, 3, 4))(values).sum().backward()
    assert values.grad.tolist() == [[0, 1, 1, 1, 1, 1, 0, 0]]


def test_the_gradient_of_a_clip_is_that_of_pact():
    values = (2 * weights(5, 3, 7)).requires_grad_()
    module = Pact(decay=0.01).activation(*site(0.1, 0, 4), False)
    upstream = weights(5, 3, 7, seed=1)
    (module(values) * upstream).sum().backward()
    total, passed = 0.0, []
    for v, g in zip(values.flatten().tolist(), upstream.flatten().tolist(), strict=True):
        total += g * (v >= module.alpha.item())
        passed.append(g * (0 < v < module.alpha.item()))
    assert module.alpha.item() == pytest.approx(1.5)
    assert module.alpha.grad.item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(values.grad.flatten(), torch.tensor(passed))
    assert module.decay == 0.01


def test_pact_keeps_the_range_of_a_site_with_negative_values():
    assert not list(Pact().activation(*site(0.1, 3, 4), False).parameters())


@pytest.mark.parametrize("method", [Lsq(), Pact(), StraightThrough(MinMax())])
def test_a_site_of_a_power_of_two_stays_one(method):
    module = method.activation(*site(0.125, 0, 8), True)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1)), *module.parameters()], lr=0.3)
    for seed in range(4):
        module(weights(6, 50, seed=seed).requires_grad_()).square().sum().backward()
        optimizer.step()
        assert math.log2(module.scale().item()).is_integer()


def test_learning_moves_the_step_to_what_fits():
    """From a step four times too large, gradient descent on the rounding error finds a better."""
    weight = weights(1, 400)
    module = LsqWeight(torch.full((1, 1), 2.0), None, Grid(3))
    optimizer = torch.optim.SGD([module.step], lr=5.0)
    before = F.mse_loss(module(weight), weight).item()
    for _ in range(60):
        optimizer.zero_grad()
        F.mse_loss(module(weight), weight).backward()
        optimizer.step()
    assert F.mse_loss(module(weight), weight).item() < 0.2 * before


def test_a_step_that_crosses_zero_stays_a_scale():
    module = LsqWeight(torch.tensor([[-0.25], [0.0]]), None, Grid(4))
    assert (module.scale() > 0).all()
    assert torch.isfinite(module(weights(2, 3))).all()


@pytest.mark.parametrize("decay", [-1, "abc", math.nan, math.inf, True, None])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(UserError, match="decay must be a number of at least 0, got"):
        Pact(decay)


def test_ranges_that_are_no_observer_are_refused():
    with pytest.raises(UserError, match="ranges must be an observer, got Lsq"):
        StraightThrough(Lsq())


def test_modules_are_modules():
    for method in (Lsq(), StraightThrough(MinMax())):
        assert isinstance(method.weight(weights(2, 3), Grid(4)), nn.Module)


class TwoNamesAndATie(nn.Module):
    """A layer that is registered twice, and another that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(3, 3), nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.again = nn.Sequential(self.first, self.tied)

    def forward(self, x):
        return self.again(x)


def test_rounded_weights_stay_out_of_a_layer_with_two_names():
    model, inputs = TwoNamesAndATie(), weights(5, 3)
    grids = {name: Grid(2, "tensor") for name in ("first", "tied")}
    wrapped = FakeQuantizedModel(model, grids, StraightThrough(MinMax()), None)
    exact, names = model.first.weight, [name for name, _ in model.named_parameters()]
    for _ in range(2):
        found = wrapped(inputs)
    assert model.first.weight is model.tied.weight is exact
    assert [name for name, _ in model.named_parameters()] == names
    rounded = wrapped.weights[0](exact)
    expected = F.linear(F.linear(inputs, rounded, model.first.bias), rounded, model.tied.bias)
    torch.testing.assert_close(found, expected)
