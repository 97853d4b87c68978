"""GPTQ against the direct form of OBQ in numpy, and what must hold for any layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressbench.analysis.input_moments import Moments
from compressbench.config.instantiate import instantiate
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, choose_scale, round_to_grid
from compressbench.core.types import Context, Runtime
from compressbench.data.digits import Digits
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.rounding.gptq import Gptq
from compressbench.quantization.rounding.nearest import Nearest
from tests.two_ranks import on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

CONTEXT = Context(None, Runtime(), 0, Path(), None)  # of which nothing is used
LAYERS = {
    "linear": (lambda: nn.Linear(11, 5), (9, 11)),
    "linear on sequences": (lambda: nn.Linear(7, 3), (2, 5, 7)),
    "conv": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (4, 3, 7, 6)),
    "same, dilated": (lambda: nn.Conv2d(2, 3, 2, padding="same", dilation=3), (3, 2, 8, 5)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (3, 2, 5, 6)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False), (5, 6, 6, 5)),
    "depthwise": (lambda: nn.Conv2d(5, 10, 3, padding=1, groups=5), (4, 5, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 5, stride=2, padding=2), (4, 3, 11)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (3, 2, 4, 3, 3)),
}


def layer_and_inputs(kind: str, seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A layer, correlated inputs, and the same inputs somewhat changed."""
    torch.manual_seed(seed)
    make, shape = LAYERS[kind]
    clean = torch.randn(shape).cumsum(-1).relu()
    return make(), clean, clean + 0.1 * torch.randn(shape)


def moments_of(layer: nn.Module, clean: torch.Tensor, seen: torch.Tensor) -> Moments:
    moments = Moments(layer)
    for batch in zip(clean.split(2), seen.split(2), strict=True):
        moments.add_(*batch)
    moments.reduce_()
    return moments


def output_error(layer: nn.Module, weight: torch.Tensor, clean, seen) -> torch.Tensor:
    """Sum of squares of each output channel, by running the layer itself."""
    with torch.no_grad():
        expected, original = layer(clean), layer.weight.clone()
        layer.weight.copy_(weight)
        squares = (layer(seen) - expected).square()
        layer.weight.copy_(original)
    channel = squares.ndim - 1 if isinstance(layer, nn.Linear) else 1
    return squares.transpose(0, channel).flatten(1).sum(1)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("options", [{}, {"order": "natural", "sweeps": 2}, {"drift": False}])
def test_outputs_are_nearer_than_rounding_to_nearest_leaves_them(kind, bits, options):
    layer, clean, seen = layer_and_inputs(kind, bits)
    clean = clean if options.get("drift", True) else seen
    grid = Grid(bits)
    found = Gptq(Mse(), **options).round(moments_of(layer, clean, seen), grid)
    nearest = Nearest(Mse())(nn.Sequential(layer), {"0": grid}, CONTEXT)["0"]
    ours = output_error(layer, found.weight, clean, seen)
    usual = output_error(layer, nearest.weight, clean, seen)
    assert (ours <= usual * 1.001 + 1e-4).all()
    assert ours.sum() < usual.sum()


@pytest.mark.parametrize("kind", LAYERS)
def test_moments_give_the_error_of_the_outputs(kind):
    layer, clean, seen = layer_and_inputs(kind, 3)
    moments = moments_of(layer, clean, seen)
    weight = layer.weight.detach() + 0.1 * torch.randn(layer.weight.shape)
    expected = output_error(layer, weight, clean, seen)
    torch.testing.assert_close(moments.error(weight), expected, rtol=1e-4, atol=1e-4)


def obq(row, hessian, order, scale, levels, zero) -> np.ndarray:
    """Optimal brain quantization of one row in a given order, each inverse computed anew."""
    row, steps, left = row.copy(), np.zeros(len(row)), list(order)
    for column in order:
        step = np.round(np.float32(row[column]) / np.float32(scale))
        steps[column] = 0.0 if zero[column] else np.clip(step, -levels, levels)
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        place = left.index(column)
        error = row[column] - steps[column] * scale
        row[left] -= error / inverse[place, place] * inverse[place]
        left.remove(column)
    return steps


@given(st.integers(0, 10_000), st.integers(2, 5), st.sampled_from(["activation", "natural"]))
@settings(max_examples=15, deadline=None)
def test_is_obq_on_small_layers(seed, bits, order):
    torch.manual_seed(seed)
    layer = nn.Linear(9, 4)
    with torch.no_grad():
        layer.weight[torch.rand(4, 9) < 0.3] = 0.0
    seen = torch.randn(40, 9) @ torch.randn(9, 9)
    moments = moments_of(layer, seen, seen)
    grid = Grid(bits)
    found = Gptq(MinMax(), damping=0.02, order=order, drift=False).round(moments, grid)
    hessian = moments.second[0].double().numpy()
    hessian = hessian + 0.02 * np.diag(hessian).mean() * np.eye(9)
    columns = np.argsort(-np.diag(hessian)) if order == "activation" else np.arange(9)
    weight = layer.weight.detach()
    scale, _ = choose_scale(weight, grid, MinMax())
    slow = torch.stack([
        torch.from_numpy(obq(row.double().numpy(), hessian, columns, s, grid.high, row == 0))
        for row, s in zip(weight, scale.flatten().double().tolist(), strict=True)
    ]).float()  # fmt: skip
    nearest = round_to_grid(weight, scale, grid)
    better = moments.error(scale * slow) < moments.error(nearest.weight)
    assert torch.equal(found.steps, torch.where(better[:, None], slow, nearest.steps).short())


def test_unrelated_inputs_of_equal_size_give_nearest():
    layer = nn.Linear(200, 6)
    inputs = torch.eye(200)
    moments = moments_of(layer, inputs, inputs)
    for grid in (Grid(3), Grid(4, "group", 20, symmetric=False)):
        found = Gptq(Mse()).round(moments, grid)
        nearest = Nearest(Mse())(nn.Sequential(layer), {"0": grid}, CONTEXT)["0"]
        assert torch.equal(found.steps, nearest.steps)


def test_inputs_that_are_always_zero_leave_their_weights_at_nearest():
    layer, clean, _ = layer_and_inputs("linear", 1)
    clean[:, [2, 5]] = 0.0
    for inputs in (clean, clean * 0):
        found = Gptq(MinMax()).round(moments_of(layer, inputs, inputs), Grid(3))
        nearest = Nearest(MinMax())(nn.Sequential(layer), {"0": Grid(3)}, CONTEXT)["0"]
        assert torch.equal(found.steps[:, [2, 5]], nearest.steps[:, [2, 5]])


@pytest.mark.parametrize("seed", range(3))
def test_many_columns_are_as_good_in_blocks_and_sweeps_only_help(seed):
    torch.manual_seed(seed)
    layer = nn.Linear(200, 4)
    inputs = torch.randn(300, 200) @ torch.randn(200, 200)
    moments = moments_of(layer, inputs, inputs)
    errors = [
        moments.error(Gptq(Mse(), sweeps=sweeps).round(moments, Grid(3)).weight).sum()
        for sweeps in (0, 1, 3)
    ]
    assert errors[2] <= errors[1] <= errors[0] * (1 + 1e-6)


def digits_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()  # fmt: skip


def test_a_whole_model_layer_after_layer_with_progress_and_left_as_it_was():
    model = digits_model()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    seen = []
    context = Context(Digits(), Runtime(), 0, Path("unused"), instantiate,
                      progress=lambda *args: seen.append(args))  # fmt: skip
    grids = {"0": Grid(3), "3": Grid(2, "tensor"), "5": Grid(4, "group", 8)}
    found = Gptq(Mse(), images=48)(model, grids, context)
    assert {name: result.scale.shape for name, result in found.items()} == {
        "0": (6, 1, 1, 1), "3": (1, 1, 1, 1), "5": (10, 8),
    }  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [done for done, _, _ in seen] == [0, 1, 2, 3]
    assert seen[1] == (1, 3, "rounding 3")


def one_rank(rank: int):
    context = Context(Digits(), Runtime(), 0, Path("unused"), instantiate)
    found = Gptq(Mse(), images=64)(digits_model(), {"0": Grid(3), "3": Grid(2)}, context)
    return {name: result.steps.tolist() for name, result in found.items()}


@pytest.mark.long
def test_two_ranks_find_the_same_steps(tmp_path):
    """Those of one process as well, up to the first BatchNorm: it uses a rank's own statistics."""
    results = on_two_ranks(one_rank, tmp_path)
    assert results[0] == results[1]
    context = Context(Digits(), Runtime(), 0, Path("unused"), instantiate)
    alone = Gptq(Mse(), images=64)(digits_model(), {"0": Grid(3), "3": Grid(2)}, context)
    assert results[0]["0"] == alone["0"].steps.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 1}, "images must be an integer of at least 2, got 1"),
        ({"damping": 0}, "damping must be a number above 0, got 0"),
        ({"order": "random"}, "order must be activation or natural, got 'random'"),
        ({"drift": 1}, "drift must be true or false, got 1"),
        ({"sweeps": -1}, "sweeps must be an integer of at least 0, got -1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Gptq(MinMax(), **options)
