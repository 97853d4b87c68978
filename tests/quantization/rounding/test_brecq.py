"""BRECQ: which blocks are found, and that a block's output stays closer than layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compressbench.analysis.layer_inputs import WorkingCopies, calibration_batches
from compressbench.config.instantiate import instantiate
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, choose_scale, expand, step_limits
from compressbench.core.types import Context, Runtime
from compressbench.data.digits import Digits
from compressbench.models.resnet import ResNet
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.rounding.adaround import AdaRound
from compressbench.quantization.rounding.blocks import Unit, find_units
from compressbench.quantization.rounding.brecq import Block, Brecq
from tests.two_ranks import on_two_ranks

GRIDS = {
    "tensor": Grid(3, "tensor"),
    "channel": Grid(2),
    "full": Grid(2, narrow=False),
    "asymmetric": Grid(3, symmetric=False),
    "power of two": Grid(4, power_of_two=True),
    "groups": Grid(3, "group", 2),
}


def context() -> Context:
    return Context(Digits(), Runtime(), 3, Path("unused"), instantiate)


def resnet8() -> nn.Module:
    """Random weights, a fifth of them zero, and statistics of real images."""
    torch.manual_seed(0)
    model = ResNet([1, 8, 8], 10, 8, 4)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[torch.rand(module.weight.shape) < 0.2] = 0.0
        for _ in range(20):
            model(Digits().prepare(Digits().split("train").inputs[:100]))
    return model.eval()


def layers_of(model: nn.Module) -> list[str]:
    """In the order of the ResNet's forward pass, the shortcut before the block's convolutions."""
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return sorted(names, key=lambda n: (n == "fc", n.split(".")[:2], "downsample" not in n))


def units_of(model: nn.Module, shape: tuple[int, ...] = (1, 8, 8)) -> dict[str, tuple[str, ...]]:
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return {u.name: u.layers for u in find_units(model.eval(), layers, torch.rand(2, *shape))}


def test_the_blocks_of_a_resnet_are_its_residual_blocks():
    units = units_of(resnet8())
    assert list(units) == ["conv1", "layer1.0", "layer2.0", "layer3.0", "fc"]
    assert set(units["layer2.0"]) == {f"layer2.0.{n}" for n in ("conv1", "conv2", "downsample.0")}
    assert units["conv1"] == ("conv1",)


class Wired(nn.Module):
    """`many` is called twice, `pair` takes two tensors, `couple` returns two, `good` is a block."""

    def __init__(self) -> None:
        super().__init__()

        def two() -> nn.Sequential:
            return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

        self.many, self.good, self.pair, self.couple = two(), two(), Pair(), Couple()
        self.outer = nn.Sequential(two(), two())
        self.chain = nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.good(self.many(self.many(inputs)))
        first, second = self.couple(self.pair(features, features))
        return self.chain(self.outer(first + second))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.a(left) + self.b(right)


class Couple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(inputs), self.b(inputs)


def test_a_block_is_called_once_with_one_tensor_for_one_tensor_and_is_the_smallest():
    units = units_of(Wired(), (4,))
    blocks = {name for name, layers in units.items() if layers != (name,)}
    assert blocks == {"good", "outer.0", "outer.1"}
    covered = [layer for layers in units.values() for layer in layers]
    expected = [n for n, m in Wired().named_modules() if isinstance(m, nn.Linear)]
    assert sorted(covered) == sorted(expected)


def block_error(model: nn.Module, name: str, results) -> float:
    """Squared error of a block's output relative to its variance, statistics shifted."""
    inputs = Digits().prepare(Digits().split("train").inputs[:400])
    copies = WorkingCopies.of(model, context())
    quantized = copies.changed
    for layer, result in results.items():
        quantized.get_parameter(f"{layer}.weight").copy_(result.weight)
    with torch.no_grad():
        clean, seen = copies.inputs_of(name, inputs, drift=True)
        expected = copies.reference.get_submodule(name)(clean)
        found = quantized.get_submodule(name)(seen)
        return ((found - expected).square().mean() / expected.var()).item()


def test_the_output_of_a_block_stays_closer_than_layer_by_layer():
    model = resnet8()
    grids = {n: Grid(2) for n in layers_of(model) if n.startswith("layer2.0")}
    alone = AdaRound(MinMax(), images=128, iterations=60)(model, grids, context())
    together = Brecq(MinMax(), images=128, iterations=60)(model, grids, context())
    assert list(together) == list(grids)
    errors = {k: block_error(model, "layer2.0", v) for k, v in
              (("alone", alone), ("together", together))}  # fmt: skip
    assert errors["together"] < 0.9 * errors["alone"]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_zeros_stay_steps_fit_and_the_model_is_not_changed(grid):
    model = resnet8()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = ["layer2.0.conv1", "layer2.0.conv2", "fc"]
    quick = {"images": 20, "iterations": 4, "batch_size": 8}
    method = Brecq(MinMax(), **quick)
    found, again = (method(model, dict.fromkeys(names, grid), context()) for _ in range(2))
    assert list(found) == names
    for name, result in found.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        scale, zero_point = choose_scale(weight, grid, MinMax())
        low, high = step_limits(grid, zero_point)
        if low.ndim:
            low, high = expand(low, weight), expand(high, weight)
        assert ((result.steps >= low) & (result.steps <= high)).all()
        exact = weight / expand(scale, weight)
        assert ((result.steps - exact.clamp(low, high)).abs() < 1.0 + 1e-4).all()
        assert not result.steps[weight == 0].any()
        assert result.scale.shape == grid.scale_shape(weight)
        assert torch.equal(result.steps, again[name].steps)
        assert torch.equal(result.scale, again[name].scale)
        if grid.power_of_two:
            assert torch.equal(result.scale, scale)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class InPlace(nn.Module):
    """A block that overwrites what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.relu = nn.Flatten(), nn.ReLU(inplace=True)
        self.body = nn.Sequential(
            self.relu, nn.Linear(64, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(self.start(inputs) - 0.5)


def test_a_block_that_overwrites_its_input_is_fitted_on_what_it_was_handed():
    torch.manual_seed(0)
    model = InPlace().eval()
    models = WorkingCopies.of(model, context())
    block = Block.of(Unit("body", ("body.1", "body.3")), models, context(), 30)
    images = torch.cat(list(calibration_batches(context(), 30)))
    weights = {name: model.get_parameter(f"{name}.weight") for name in ("body.1", "body.3")}
    for _ in range(2):
        assert block.error(weights, torch.arange(30)).item() < 1e-10
        assert torch.equal(block.inputs, images.flatten(1) - 0.5)
    assert torch.allclose(block.targets, model(images))


def one_rank(rank: int):
    model, names = resnet8(), ["conv1", "layer2.0.conv1", "layer2.0.conv2"]
    method = Brecq(MinMax(), images=41, iterations=8, batch_size=8)
    found = method(model, dict.fromkeys(names, Grid(2)), context())
    return {n: (r.steps.tolist(), r.scale.tolist()) for n, r in found.items()}


@pytest.mark.long
def test_two_ranks_with_their_own_images_find_the_same_steps_and_scales(tmp_path):
    results = on_two_ranks(one_rank, tmp_path)
    assert results[0] == results[1]
    assert set(results[0]) == {"conv1", "layer2.0.conv1", "layer2.0.conv2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size must be an integer of at least 2, got 1"),
        ({"images": "many"}, "images must be an integer of at least 2, got 'many'"),
        ({"scale_learning_rate": -1.0}, r"scale_learning_rate must be .* \[0, 1\], got -1\.0"),
        ({"warmup": None}, r"warmup must be a number in \[0, 1\), got None"),
    ],
)
def test_bad_options_are_refused_with_their_value(options, message):
    with pytest.raises(UserError, match=message):
        Brecq(MinMax(), **options)
