"""What rounding is fitted to: inputs and blocks under the statistics that will hold."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.analysis.layer_inputs import WorkingCopies, calibration_batches
from compressbench.core.types import Context, Runtime
from compressbench.data.digits import Digits
from compressbench.pruning.prune import Prune
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.rounding.blocks import Unit
from compressbench.quantization.rounding.brecq import Block
from compressbench.quantization.rounding.nearest import Nearest
from compressbench.training.batchnorm import BatchNormOptions
from tests.pruning.pruned_net import context as pruning_context
from tests.pruning.pruned_net import trained
from tests.quantization import quantized_net

RULES = ("shift", "measure", "keep")
IMAGES = 90
LAYERS = ("stem.0", "block.conv", "block.again", "fc")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.again, self.bn2 = nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.again(F.relu(self.bn(self.conv(x))))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU())
        self.block, self.fc = Residual(), nn.Linear(5, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


def net() -> Net:
    """With statistics as of other images than the digits."""
    torch.manual_seed(2)
    model = Net()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.2, 0.6)
            nn.init.normal_(layer.running_mean, 0.0, 0.3)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return model.eval()


def changed(model: Net) -> Net:
    torch.manual_seed(3)
    other = deepcopy(model)
    with torch.no_grad():
        for name in LAYERS:
            weight = other.get_parameter(f"{name}.weight")
            weight.add_(0.2 * weight.std() * torch.randn_like(weight))
    return other


def context(rule: str) -> Context:
    return Context(Digits(), Runtime(), 7, Path(), lambda config: config, batchnorm=rule)


def finished(rule: str) -> Net:
    """The changed model once its statistics have followed, on the images of the calibration."""
    other = changed(net())
    options = BatchNormOptions(batchnorm=rule, batchnorm_images=IMAGES)
    options.update_batchnorm_(other, net(), context(rule))
    return other


@pytest.mark.parametrize("drift", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_the_copy_normalizes_as_the_finished_model_will(rule, drift):
    copies = WorkingCopies.of(net(), context(rule))
    copies.changed.load_state_dict(changed(net()).state_dict())
    (batch,) = calibration_batches(context(rule), IMAGES)
    clean, seen = copies.inputs_of("fc", batch, drift)
    with torch.no_grad():
        each = finished(rule)
        wanted = each.block(each.stem(batch)).mean((2, 3))
        torch.testing.assert_close(seen, wanted, rtol=2e-3, atol=2e-3)
        exact = net()
        clean_wanted = exact.block(exact.stem(batch)).mean((2, 3))
    torch.testing.assert_close(clean, clean_wanted if drift else seen)


@pytest.mark.parametrize("rule", RULES)
def test_the_error_of_a_block_is_that_of_the_finished_model(rule):
    copies = WorkingCopies.of(net(), context(rule))
    stem = changed(net()).stem.state_dict()
    copies.changed.stem.load_state_dict(stem)
    layers = ("block.conv", "block.again")
    block = Block.of(Unit("block", layers), copies, context(rule), IMAGES)
    weights = {n: changed(net()).get_parameter(f"{n}.weight").detach() for n in layers}
    (batch,) = calibration_batches(context(rule), IMAGES)
    with torch.no_grad():
        found, exact = finished(rule), net()
        outputs, wanted = (m.block(m.stem(batch)) for m in (found, exact))
        error = float((outputs - wanted).square().mean())
        for _ in range(2):
            assert float(block.error(weights, torch.arange(IMAGES))) == pytest.approx(
                error, rel=0.02
            )
    assert error > 0
    rows = torch.randperm(IMAGES)[:11]
    weights["block.conv"].requires_grad_()
    (gradient,) = torch.autograd.grad(block.error(weights, rows), weights["block.conv"])
    assert bool(gradient.isfinite().all()) and bool(gradient.any())


@dataclass(frozen=True)
class Remembers:
    """Rounds to nearest, and notes what the stage will do with the statistics."""

    told: list[str] = field(default_factory=list)

    def __call__(self, model, grids, own):
        self.told.append(own.batchnorm)
        return Nearest(MinMax())(model, grids, own)


@dataclass(frozen=True)
class Updates:
    told: list[str] = field(default_factory=list)

    def __call__(self, layers, own):
        return {name: layer.weight.detach().abs() for name, layer in layers.items()}

    def update(self, model, masks, own):
        self.told.append(own.batchnorm)
        return {}


@pytest.mark.parametrize("rule", RULES)
def test_methods_that_fit_are_told_what_the_stage_will_do(rule):
    method, criterion = Remembers(), Updates()
    stage = replace(quantized_net.stage(batchnorm=rule), weight=method)
    stage.run({"model": quantized_net.start()}, quantized_net.context())
    assert method.told == [rule]
    Prune(criterion, 0.5, batchnorm=rule).run({"model": trained()}, pruning_context())
    assert criterion.told == [rule]
