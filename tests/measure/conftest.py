"""A trained-enough model in memory, exported once."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core import activation_quantizers, activation_sites
from compressbench.core.types import Artifact, DataSpec, Split
from compressbench.export.onnx import export_onnx


@dataclass(frozen=True)
class BrightData:
    """Gray images whose brightest quadrant is their class."""

    metric: str = "accuracy"

    @property
    def spec(self):
        return DataSpec("bright", (1, 8, 8), tuple("abcd"), (0.5,), (0.25,), self.metric)

    def split(self, name):
        generator = torch.Generator().manual_seed({"train": 0, "validation": 1, "test": 2}[name])
        inputs = torch.randint(0, 180, (120, 1, 8, 8), dtype=torch.uint8, generator=generator)
        targets = torch.randint(0, 4, (120,), generator=generator)
        for image, label in zip(inputs, targets.tolist(), strict=True):
            y, x = 4 * (label // 2), 4 * (label % 2)
            image[:, y : y + 4, x : x + 4] += 60
        return Split(inputs, targets)

    def prepare(self, inputs):
        return (inputs.float() / 255 - 0.5) / 0.25


class Quadrants(nn.Module):
    """Convolves, then compares the quadrants: right by construction."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.fc = nn.Linear(8, 4)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 9)
            self.conv.bias.copy_(torch.tensor([2.0, 3.0]))
            self.fc.weight.copy_(torch.eye(4).repeat(1, 2))
            self.fc.bias.zero_()

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 2).flatten(1))


def _quantize(model, example):
    edit = {"kind": "weight_grid", "layers": {}}
    for name in ("conv", "fc"):
        layer = model.get_submodule(name)
        scale = layer.weight.data.abs().amax() / 127
        layer.weight.data = scale * torch.round(layer.weight.data / scale)
        layer.register_buffer("weight_scale", scale.reshape([1] * layer.weight.ndim))
        edit["layers"][name] = {"bits": 8, "granularity": "tensor"}
    places = {
        "kind": "activation_grid",
        "sites": activation_sites.find_sites(model, example[:2]),
        "bits": 8,
        "symmetric": False,
        "calibration": {},
    }
    for number, quantizer in enumerate(activation_quantizers.attach_(model, places)):
        quantizer.set_range_(-2.0 if number == 0 else 0.0, 6.0)
    return Artifact(model, {}, (edit, places), frozenset())


@pytest.fixture(autouse=True)
def alone(one_thread):
    """All tests of this folder."""


@pytest.fixture(scope="session")
def data():
    return BrightData()


@pytest.fixture(scope="session")
def exported(tmp_path_factory, data):
    """(quantized or not) -> artifact, path."""

    @functools.cache
    def make_file(quantized):
        model = Quadrants().eval()
        example = data.prepare(data.split("train").inputs)
        plain = Artifact(model, {}, (), frozenset())
        made = _quantize(model, example) if quantized else plain
        path = tmp_path_factory.mktemp("measured") / "model.onnx"
        export_onnx(made, data, path)
        return made, path

    return make_file
