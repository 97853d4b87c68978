"""AdaRound against exhaustive search and float64 derivatives, and what must hold for any layer."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.layer_inputs import WorkingCopies
from compressbench.config.instantiate import instantiate
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, choose_scale, expand, round_to_grid, step_limits
from compressbench.core.types import Context, Runtime
from compressbench.data.digits import Digits
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.rounding.adaround import AdaRound
from compressbench.quantization.rounding.reconstruction import (
    Fit,
    SoftSteps,
    fit_layer,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    rounding_penalty,
)

QUICK = Fit(iterations=30, learning_rate=0.2, regularization=10.0, warmup=0.2)
LAYERS = {
    "linear": (lambda: nn.Linear(13, 5), (40, 13)),
    "linear on sequences": (lambda: nn.Linear(7, 3), (9, 5, 7)),
    "conv": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (9, 3, 7, 6)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False), (9, 6, 6, 5)),
    "depthwise": (lambda: nn.Conv2d(5, 10, 3, padding=1, groups=5), (8, 5, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 5, stride=2, padding=2), (20, 3, 11)),
}
GRIDS = {
    "tensor": Grid(3, "tensor"),
    "channel": Grid(2),
    "full": Grid(2, narrow=False),
    "asymmetric": Grid(3, symmetric=False),
    "power of two": Grid(4, power_of_two=True),
    "groups": Grid(3, "group", 1),
}


def context() -> Context:
    return Context(Digits(), Runtime(), 3, Path("unused"), instantiate)


def layer_and_inputs(kind: str, seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A layer a third of whose weights are zero, correlated inputs, and the same a bit changed."""
    torch.manual_seed(seed)
    make, shape = LAYERS[kind]
    layer = make()
    with torch.no_grad():
        layer.weight[torch.rand(layer.weight.shape) < 0.3] = 0.0
    clean = torch.randn(shape).cumsum(1).relu()
    return layer, clean, clean + 0.1 * torch.randn(shape)


def output_error(layer: nn.Module, weight: torch.Tensor, clean, seen) -> float:
    """The sum of squares, by running the layer itself in float64."""
    with torch.no_grad():
        expected = layer.double()(clean.double())
        original = layer.weight.clone()
        layer.weight.copy_(weight)
        error = (layer(seen.double()) - expected).square().sum().item()
        layer.weight.copy_(original)
    layer.float()
    return error


def fitted(layer, clean, seen, grid, fit=QUICK, ranges=None, scale_learning_rate=0.0):
    moments = Moments(layer)
    moments.add_(clean, seen)
    return fit_layer(moments, grid, ranges or MinMax(), fit, scale_learning_rate)


def test_the_soft_choice_is_the_rectified_sigmoid_and_so_is_its_gradient():
    v = torch.linspace(-6, 6, 97, dtype=torch.float64).requires_grad_()
    h = rectified_sigmoid(v)
    h.sum().backward()
    step = 1e-6
    with torch.no_grad():
        numeric = (rectified_sigmoid(v + step) - rectified_sigmoid(v - step)) / (2 * step)
        by_hand = [min(1.0, max(0.0, 1.2 / (1 + 2.718281828459045**-x) - 0.1)) for x in v.tolist()]
    assert torch.allclose(v.grad, numeric, atol=1e-8)
    assert torch.allclose(h.detach(), torch.tensor(by_hand, dtype=torch.float64), atol=1e-12)
    assert 0 < int((v.grad == 0).sum()) < len(v)


def test_the_soft_choice_starts_at_the_weight_itself():
    h = torch.rand(50, dtype=torch.float64)
    assert torch.allclose(rectified_sigmoid(inverse_rectified_sigmoid(h)), h)
    weight = torch.randn(4, 6)
    grid = Grid(8)
    soft = SoftSteps(weight, grid, *choose_scale(weight, grid, MinMax()))
    assert torch.allclose(soft.weight(), weight, atol=1e-5)


def test_the_penalty_is_its_sum_over_weights_that_have_a_choice():
    torch.manual_seed(0)
    weight = torch.randn(3, 5)
    weight[0, :2] = 0.0
    grid = Grid(2)
    scale, _ = choose_scale(weight, grid, MinMax())
    scale *= 0.6  # some weights lie beyond the grid
    soft = SoftSteps(weight, grid, scale, None)
    expected, choices = 0.0, 0
    for row, column in itertools.product(range(3), range(5)):
        exact = weight[row, column].item() / scale[row, 0].item()
        if exact == 0 or not -1 <= exact < 1:
            continue
        up = exact - (-1 if exact < 0 else 0)
        expected += 1 - abs(2 * up - 1) ** 3.5
        choices += 1
    assert 0 < choices < 13
    assert soft.penalty(3.5).item() == pytest.approx(expected, rel=1e-4)
    assert rounding_penalty(torch.tensor([0.0, 1.0, 0.5]), 20.0).tolist() == [0.0, 0.0, 1.0]


def test_beta_falls_after_the_warm_up():
    fit = Fit(100, 0.1, 1.0, 0.2)
    betas = [fit.beta(step) for step in range(100)]
    assert betas[:20] == [None] * 20
    assert betas[20] == pytest.approx(20.0)
    assert betas[60] == pytest.approx(11.0)
    assert 2.0 < betas[99] < 2.3
    assert all(a > b for a, b in itertools.pairwise(betas[20:]))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@given(st.sampled_from(sorted(LAYERS)), st.integers(0, 99))
@settings(max_examples=4, deadline=None)
def test_every_step_is_floor_or_ceil_and_outputs_are_at_least_as_close(grid, kind, seed):
    layer, clean, seen = layer_and_inputs(kind, seed)
    result = fitted(layer, clean, seen, grid)
    weight = layer.weight.detach()
    scale, zero_point = choose_scale(weight, grid, MinMax())
    assert torch.equal(result.scale, scale)
    low, high = step_limits(grid, zero_point)
    if low.ndim:
        low, high = expand(low, weight), expand(high, weight)
    exact = weight / expand(scale, weight)
    down, up = torch.floor(exact - 1e-4), torch.ceil(exact + 1e-4)  # a step goes either way
    assert (result.steps >= down.clamp(low, high)).all()
    assert (result.steps <= up.clamp(low, high)).all()
    assert not result.steps[weight == 0].any()
    nearest = round_to_grid(weight, scale, grid, zero_point)
    error, usual = (output_error(layer, r.weight, clean, seen) for r in (result, nearest))
    assert error <= usual * (1 + 1e-4)


def test_comes_close_to_the_best_of_all_roundings():
    """All 2**8 roundings of each output are tried, for inputs that are nearly of rank 3."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 12, bias=False)
    inputs = torch.randn(60, 3) @ torch.randn(3, 8) + 0.3 * torch.randn(60, 8)
    grid, fit = Grid(3), Fit(100, 0.2, 10.0, 0.2)
    result = fitted(layer, inputs, inputs, grid, fit)
    weight = layer.weight.detach()
    near = round_to_grid(weight, result.scale, grid).weight
    choices = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    best = 0.0
    for row in range(12):
        steps = (torch.floor(weight[row] / result.scale[row]) + choices).clamp(grid.low, grid.high)
        errors = ((steps * result.scale[row] - weight[row]) @ inputs.T).square().sum(1)
        best += errors.min().item()
    found, usual = (((w - weight) @ inputs.T).square().sum().item() for w in (result.weight, near))
    assert best * (1 - 1e-4) <= found
    assert found - best < 0.4 * (usual - best)


def test_learned_scales_mend_bad_ones_and_powers_of_two_stay():
    layer, clean, seen = layer_and_inputs("linear", 1)
    fixed, learned = (
        output_error(layer, fitted(layer, clean, seen, Grid(2), QUICK, MinMax(), rate).weight,
                     clean, seen)
        for rate in (0.0, 0.1)
    )  # fmt: skip
    assert learned < 0.7 * fixed
    grid = Grid(3, power_of_two=True)
    scale = fitted(layer, clean, seen, grid, scale_learning_rate=0.1).scale
    assert torch.equal(scale, choose_scale(layer.weight, grid, MinMax())[0])


def small_net() -> nn.Sequential:
    """With the statistics of digits."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    model[1].momentum = model[4].momentum = 1.0
    with torch.no_grad():
        model(Digits().prepare(Digits().split("train").inputs[:400]))
    return model.eval()


def test_a_model_keeps_its_outputs_better_than_with_nearest_and_is_not_changed():
    model = small_net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grids = {"0": Grid(4), "3": Grid(2, "tensor"), "7": Grid(3, symmetric=False)}
    quick = {"images": 64, "iterations": 40}
    first = AdaRound(MinMax(), **quick)(model, grids, context())
    again = AdaRound(MinMax(), **quick)(model, grids, context())
    assert list(first) == list(grids)
    for name in grids:
        assert torch.equal(first[name].steps, again[name].steps)
        assert torch.equal(first[name].scale, again[name].scale)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    inputs = Digits().prepare(Digits().split("train").inputs[:200])
    errors = {}
    for kind in ("adaround", "nearest"):
        copies = WorkingCopies.of(model, context())
        reference, quantized = copies.reference, copies.changed
        for name, grid in grids.items():
            weight = model.get_parameter(f"{name}.weight")
            near = round_to_grid(weight, *_as_arguments(weight, grid))
            result = first[name] if kind == "adaround" else near
            quantized.get_parameter(f"{name}.weight").copy_(result.weight)
        wanted = reference(inputs)
        errors[kind] = (quantized(inputs) - wanted).square().mean().item()
    assert errors["adaround"] < 0.8 * errors["nearest"]


def _as_arguments(weight: torch.Tensor, grid: Grid):
    scale, zero_point = choose_scale(weight, grid, MinMax())
    return scale, grid, zero_point


class Bypassed(nn.Module):
    """Uses the weight of a layer, but never the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs.flatten(1), self.inner.weight)


def test_a_layer_that_is_never_called_is_refused_with_what_to_do():
    with pytest.raises(UserError, match=r"inner: .*never calls.*layers: inner, bits: null"):
        AdaRound(MinMax(), 8, 1)(Bypassed(), {"inner": Grid(4)}, context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 1}, "images must be an integer of at least 2, got 1"),
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be a number above 0, got 0\.0"),
        ({"regularization": -1}, "regularization must be a number above 0, got -1"),
        ({"warmup": 1.0}, r"warmup must be a number in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_options_are_refused_with_their_value(options, message):
    with pytest.raises(UserError, match=message):
        AdaRound(MinMax(), **options)
