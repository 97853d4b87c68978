"""Convolutions of one, two and three axes with a norm: the file computes what torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.types import Artifact, DataSpec, Split
from compressbench.export.onnx import export_onnx
from tests.export.export_zoo import run

CLASSES, SIZES = 5, (7, 6, 5)
CONVOLUTIONS = {
    ("plain", 1): nn.Conv1d,
    ("plain", 2): nn.Conv2d,
    ("plain", 3): nn.Conv3d,
    ("turned", 1): nn.ConvTranspose1d,
    ("turned", 2): nn.ConvTranspose2d,
    ("turned", 3): nn.ConvTranspose3d,
}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class Floats:
    """Random float inputs of one shape."""

    def __init__(self, shape):
        self.spec = DataSpec("floats", shape, tuple("abcde"), (), ())

    def split(self, name):
        return Split(self.spec.noise(6, torch.Generator().manual_seed(0)), torch.zeros(6).long())

    def prepare(self, inputs):
        return inputs


class Net(nn.Module):
    """Convolution, norm, ReLU, convolution of another shape, norm; then means and a Linear."""

    def __init__(self, axes, kind, norm, bias):
        super().__init__()
        convolution = CONVOLUTIONS[kind, axes]
        norms = BATCH_NORMS if norm == "batch" else INSTANCE_NORMS
        affine = {} if norm == "batch" else {"affine": True, "track_running_stats": bias}
        self.first = convolution(4, 6, 3, padding=1, bias=bias)
        self.norm = norms[axes](6, **affine)
        self.second = convolution(6, 9, 2, stride=2, groups=3, dilation=2, bias=bias)
        self.norm2 = norms[axes](9, **affine)
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        return self.fc(self.norm2(self.second(x)).flatten(2).mean(2))


def _randomize_(model):
    for module in model.modules():
        if isinstance(module, (*BATCH_NORMS.values(), *INSTANCE_NORMS.values())):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.3, 2.0)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kind", ["plain", "turned"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_file_computes_what_torch_does(axes, kind, norm, bias, tmp_path):
    torch.manual_seed(2)
    model = Net(axes, kind, norm, bias).eval()
    _randomize_(model)
    data = Floats((4, *SIZES[:axes]))
    export_onnx(Artifact(model, {}, (), frozenset()), data, tmp_path / "model.onnx")
    inputs = data.split("validation").inputs[:3]
    with torch.no_grad():
        expected = model(inputs).numpy()
    for optimize in (True, False):
        got = run(tmp_path / "model.onnx", inputs, optimize)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
