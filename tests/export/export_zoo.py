"""Small models, hand-made quantized artifacts and data in memory: nothing of the stages is used."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core import activation_quantizers, activation_sites
from compressbench.core import artifact as artifacts
from compressbench.core.types import Artifact, DataSpec, Split

SHAPE, CLASSES = (3, 12, 12), 5


@dataclass(frozen=True)
class ArrayData:
    """Random images; `targets` follow from the brightest channel."""

    count: int = 48
    spec: DataSpec = field(
        default=DataSpec(
            "noise", SHAPE, tuple("abcdé"), (0.5, 0.4, 0.6), (0.25, 0.2, 0.3), "accuracy"
        )
    )

    def split(self, name):
        generator = torch.Generator().manual_seed({"train": 0, "validation": 1, "test": 2}[name])
        inputs = torch.randint(0, 256, (self.count, *SHAPE), dtype=torch.uint8, generator=generator)
        return Split(inputs, inputs.float().mean((2, 3)).argmax(1))

    def prepare(self, inputs: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.spec.mean, self.spec.std))
        return (inputs.float() / 255 - mean) / std


class Residual(nn.Module):
    """BatchNorm with negative, zero and tiny gamma; ReLU; addition; mean; Linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn2(self.conv(x)) + x)
        return self.fc(x.mean((2, 3)))


class Mobile(nn.Module):
    """Depthwise, squeeze-excite with sigmoid, ReLU6, strides, adaptive pooling."""

    def __init__(self):
        super().__init__()
        self.up = nn.Conv2d(3, 16, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.down = nn.Conv2d(16, 8, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu6(self.bn(self.up(x)))
        x = F.relu6(self.bn2(self.depthwise(x)))
        gate = F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        x = x * torch.sigmoid(self.excite(gate))
        x = self.bn3(self.down(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Concat(nn.Module):
    """Concatenation, max pooling, flatten, a BatchNorm that follows no convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(3, 4, 5, padding=2)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 36, CLASSES)

    def forward(self, x):
        x = torch.cat([F.relu(self.first(x)), F.relu(self.second(x))], 1)
        return self.fc(F.max_pool2d(self.bn(x), 2).flatten(1))


class Perceptron(nn.Module):
    """Linear without bias, BatchNorm1d, dropout."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3 * 144, 16, bias=False)
        self.bn = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.fc(self.drop(F.relu(self.bn(self.hidden(x.flatten(1))))))


class Attention(nn.Module):
    """Three-dimensional Linear layers around a softmax."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(144, 24)
        self.query = nn.Linear(24, 24, bias=False)
        self.value = nn.Linear(24, 24)
        self.norm = nn.LayerNorm(24)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x):
        x = self.embed(x.flatten(2))
        weights = torch.softmax(self.query(x) @ x.transpose(1, 2) / 24**0.5, -1)
        return self.fc(self.norm(x + weights @ self.value(x)).mean(1))


class Shared(nn.Module):
    """One convolution run twice, before two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn(self.twice(F.relu(self.stem(x)))))
        x = F.relu(self.bn2(self.twice(x)))
        return self.fc(x.mean((2, 3)))


MODELS = (Residual, Mobile, Concat, Perceptron, Attention, Shared)


def make(kind: type[nn.Module]) -> nn.Module:
    """A model with random weights and BatchNorm values of both signs, one gamma zero."""
    torch.manual_seed(3)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            with torch.no_grad():
                module.weight[:2] = torch.tensor([0.0, -1.5])
    return model


def quantize(model: nn.Module, bits: int, granularity: str, example: Tensor | None) -> Artifact:
    """Round to nearest on the largest weight; uint8 activations where `example` is given."""
    model = copy.deepcopy(model)
    edits = []
    if bits < 32:
        grid = {"kind": "weight_grid", "layers": {}}
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                _round_(layer, bits, granularity)
                grid["layers"][name] = {"bits": bits, "granularity": granularity}
        edits.append(grid)
    if example is not None:
        edits.append(calibrate_(model, example))
    made = Artifact(model, {}, tuple(edits), frozenset())
    artifacts.check(made)
    return made


def _round_(layer, bits, granularity):
    largest = 2 ** (bits - 1) - 1
    weight = layer.weight.data
    peak = weight.abs().flatten(1).amax(1) if granularity == "channel" else weight.abs().max()
    scale = (peak / largest).clamp(min=1e-30).reshape(-1, *[1] * (weight.ndim - 1))
    layer.weight.data = scale * torch.round(weight / scale).clamp(-largest, largest)
    layer.register_buffer("weight_scale", scale.clone())


def calibrate_(model, example, bits=8):
    edit = {
        "kind": "activation_grid",
        "sites": activation_sites.find_sites(model, example[:2]),
        "bits": bits,
        "symmetric": False,
        "calibration": {},
    }
    quantizers = activation_quantizers.attach_(model, edit)
    ranges = [[0.0, 0.0] for _ in edit["sites"]]

    def observe(number, values):
        low, high = ranges[number]
        ranges[number] = [min(low, float(values.min())), max(high, float(values.max()))]

    quantizers.observe = observe
    with torch.no_grad():
        model(example)
    quantizers.observe = None
    for quantizer, (low, high) in zip(quantizers, ranges, strict=True):
        quantizer.set_range_(low, high)
    return edit


def run(path: Path, inputs: Tensor, optimize: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = off
    return onnxruntime.InferenceSession(path, options).run(None, {"input": inputs.numpy()})[0]
