"""The recalibrate stage: statistics of the images at hand, and nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core import artifact
from compressbench.core.batchnorm import batchnorm_layers
from compressbench.core.errors import UserError
from compressbench.core.types import (
    QUANTIZED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    Context,
    DataSpec,
    Runtime,
    Split,
    Stage,
)
from compressbench.data.digits import Digits
from compressbench.engine.order import check_order
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.nearest import Nearest
from compressbench.training.batchnorm import reestimate_batchnorm_
from compressbench.training.recalibrate import Recalibrate


class Dimmed:
    """The digits at a third of the contrast, and brighter: data that have moved."""

    spec: DataSpec = Digits().spec

    def split(self, name: str) -> Split:
        return Digits().split(name)

    def prepare(self, inputs: Tensor) -> Tensor:
        return 0.3 * Digits().prepare(inputs) + 1.5


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


@cache
def trained() -> nn.Sequential:
    """A net after two epochs on the digits as they are."""
    model, split = net(), Digits().split("train")
    inputs, optimizer = Digits().prepare(split.inputs), torch.optim.Adam(model.parameters(), 0.01)
    for step in range(34):
        rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(step))[:64]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), split.targets[rows]).backward()
        optimizer.step()
    return model.eval()


def context(data: object | None = None) -> Context:
    return Context(data or Digits(), Runtime(), 3, Path(), lambda config: config)


def start(model: nn.Module) -> Artifact:
    return Artifact(model, {"_target_": "net"}, (), frozenset({TRAINED}))


@torch.no_grad()
def accuracy(model: nn.Module, data: Dimmed) -> float:
    split = data.split("validation")
    return float((model(data.prepare(split.inputs)).argmax(1) == split.targets).float().mean())


def test_a_net_whose_data_have_moved_gains_and_its_weights_stay():
    before, moved = trained(), Dimmed()
    digest = artifact.digest(start(before))
    result = Recalibrate(512).run({"model": start(before)}, context(moved))
    assert accuracy(before, Digits()) > 0.85
    assert accuracy(before, moved) < 0.6
    assert accuracy(result.artifact.model, moved) > accuracy(before, Digits()) - 0.05
    assert artifact.digest(start(before)) == digest
    for name, value in before.named_parameters():
        assert torch.equal(result.artifact.model.get_parameter(name), value)
    assert result.notes == ("BatchNorm statistics of 2 layers were measured on training images",)


def test_the_statistics_are_those_that_measuring_gives():
    wanted = net()
    reestimate_batchnorm_(wanted, context(), 100)
    found = Recalibrate(100).run({"model": start(net())}, context()).artifact.model
    for name, layer in batchnorm_layers(wanted).items():
        assert torch.equal(found.get_submodule(name).running_mean, layer.running_mean)
        assert torch.equal(found.get_submodule(name).running_var, layer.running_var)


def test_a_model_without_statistics_is_refused():
    plain = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=False)
    )
    with pytest.raises(
        UserError, match="no BatchNorm with running statistics; leave the stage out"
    ):
        Recalibrate().check_model(plain, Digits().spec)
    with pytest.raises(UserError, match="no BatchNorm with running statistics"):
        Recalibrate().run({"model": start(plain)}, context())
    Recalibrate().check_model(net(), Digits().spec)


def test_it_is_a_stage_that_comes_before_activations_are_calibrated():
    stage, weights = Recalibrate(), Quantize(Nearest(MinMax()))
    assert isinstance(stage, Stage)
    assert [stage.passes(n) for n in (500, 5000)] == [(0, 500), (0, 1024)]
    with pytest.raises(UserError, match="images must be an integer of at least 2, got 1"):
        Recalibrate(1)

    class Start(Recalibrate):
        needs, adds = frozenset(), frozenset({TRAINED})

    assert weights.adds == {WEIGHT_QUANTIZED}
    check_order({"train": Start(), "recalibrate": stage, "quantize": Quantize(Nearest(MinMax()))})
    check_order({"train": Start(), "quantize": weights, "recalibrate": stage})
    both = Quantize(Nearest(MinMax()), MinMax())
    assert both.adds == QUANTIZED
    with pytest.raises(UserError, match="an order that works: train, recalibrate, quantize"):
        check_order({"train": Start(), "quantize": both, "recalibrate": stage})
