"""Every quantizer of the groups keeps what its kind promises."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressbench.config.instantiate import instantiate
from compressbench.core.activation_quantizers import fake_quantize
from compressbench.core.grid import Grid, expand, step_limits
from tests.contracts.group_files import composed, context, of, plain


def is_observer(path: Path) -> bool:
    return hasattr(instantiate(composed(path)), "update")


@pytest.mark.parametrize("path", [p for p in of("quantizer") if is_observer(p)],
                         ids=lambda p: p.stem)  # fmt: skip
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), shift=st.floats(-50, 50))
def test_an_observer_stays_within_what_it_saw(path, seed, shift):
    observer = instantiate(plain(path))
    generator = torch.Generator().manual_seed(seed)
    seen = [torch.randn(n, 3, generator=generator) + shift for n in (40, 70)]
    statistic = observer.start()
    for values in seen:
        statistic = observer.update(statistic, values)
    low, high = observer.range(statistic, 8, False)
    everything = torch.cat(seen)
    width = float(everything.max() - everything.min())
    assert float(everything.min()) - 0.01 * width - 1e-5 <= low <= high
    assert high <= float(everything.max()) + 0.01 * width + 1e-5
    assert high - low > 0.5 * width


FEW = {"images": 24, "iterations": 8, "batch_size": 8}  # for methods that fit to images


GRIDS = [
    Grid(8),
    Grid(4, "tensor", symmetric=False),
    Grid(3, "tensor", power_of_two=True),
    Grid(2, narrow=False),
    Grid(2, symmetric=False),
    Grid(4, "group", 2),
    Grid(3, "group", 1, symmetric=False, narrow=False),
]


@pytest.mark.parametrize("path", [p for p in of("quantizer") if callable(instantiate(composed(p)))],
                         ids=lambda p: p.stem)  # fmt: skip
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_a_weight_quantizer_keeps_its_grid_and_its_zeros(path, grid):
    torch.manual_seed(len(repr(grid)))
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 10),
    ).eval()  # fmt: skip
    zeros = torch.rand(model[3].weight.shape) < 0.4
    with torch.no_grad():
        model[3].weight[zeros] = 0.0
        model[5].weight[2] = 0.0
    before = {name: values.clone() for name, values in model.state_dict().items()}
    one_input = Grid(8) if grid.granularity == "group" else grid
    grids = {"0": one_input, "3": grid, "5": grid}
    config = composed(path)
    few = {key: value for key, value in FEW.items() if key in config}
    found = instantiate(config | few)(model, grids, context())
    assert set(found) == set(grids)
    assert all(torch.equal(values, before[n]) for n, values in model.state_dict().items())
    for name, result in found.items():
        check_grid_weight(model.get_submodule(name).weight, grids[name], result)
    assert not found["3"].steps[zeros].any()
    assert not found["5"].steps[2].any()


def check_grid_weight(weight, grid, result):
    assert result.steps.shape == weight.shape
    assert result.steps.dtype == torch.int16
    assert result.scale.shape == grid.scale_shape(weight)
    assert (result.scale > 0).all()
    assert torch.isfinite(result.scale).all()
    assert (result.zero_point is None) == grid.symmetric
    low, high = step_limits(grid, result.zero_point)
    assert (result.steps >= (expand(low, weight) if low.ndim else low)).all()
    assert (result.steps <= (expand(high, weight) if high.ndim else high)).all()
    if grid.power_of_two:
        assert torch.equal(result.scale, torch.exp2(result.scale.log2().round()))


@pytest.mark.parametrize("path", of("trained_quantizer"), ids=lambda p: p.stem)
@settings(max_examples=12, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 99), symmetric=st.booleans(),
       granularity=st.sampled_from(["tensor", "channel"]))  # fmt: skip
def test_a_trained_quantizer_of_weights_stays_on_its_grid(path, bits, seed, symmetric, granularity):
    method = instantiate(composed(path))
    if not hasattr(method, "weight"):
        assert hasattr(method, "activation")
        return
    torch.manual_seed(seed)
    weight = torch.randn(5, 2, 3, requires_grad=True)
    weight.data[torch.rand(weight.shape) < 0.4] = 0.0
    module = method.weight(weight.detach(), Grid(bits, granularity, symmetric=symmetric))
    rounded, kept = module(weight), module.grid_weight(weight.detach())
    assert torch.equal(rounded, kept.weight)
    assert not kept.steps[weight == 0].any()
    (rounded * torch.randn(5, 2, 3)).sum().backward()
    for tensor in (weight, *module.parameters()):
        assert torch.isfinite(tensor.grad).all()
    assert weight.grad.any()


@pytest.mark.parametrize("path", of("trained_quantizer"), ids=lambda p: p.stem)
@settings(max_examples=12, deadline=None)
@given(bits=st.integers(4, 8), seed=st.integers(0, 99), negative=st.booleans())
def test_a_trained_quantizer_of_activations_starts_as_calibrated(path, bits, seed, negative):
    method = instantiate(composed(path))
    if not hasattr(method, "activation"):
        return
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 6, generator=generator, requires_grad=True)
    scale = torch.rand((), generator=generator) + 0.1
    zero_point = torch.tensor(negative * 5, dtype=torch.uint8)
    module = method.activation(scale, zero_point, bits, False)
    torch.testing.assert_close(module.scale(), scale)
    rounded = module(values)
    assert torch.equal(rounded, fake_quantize(values.detach(), module.scale(), zero_point, bits))
    rounded.sum().backward()
    for tensor in (values, *module.parameters()):
        assert torch.isfinite(tensor.grad).all()
    assert values.grad.any()
