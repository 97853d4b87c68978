"""Networks and the places where an integer runtime rounds them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.activation_quantizers import attach_
from compressbench.core.activation_sites import find_sites


class Residual(nn.Module):
    """conv-bn-relu, in place, and an addition written as an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(x))
        out += x
        out = self.relu(out)
        return self.fc(out.mean((2, 3)))


class DepthwiseSqueezeExcite(nn.Module):
    """Depthwise, hard-swish, sigmoid gates, dropout, view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.Hardswish()
        self.squeeze = nn.Conv2d(4, 2, 1)
        self.excite = nn.Conv2d(2, 4, 1)
        nn.init.ones_(self.squeeze.bias)  # a live gate
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 64, 3)

    def forward(self, x):
        x = self.act(self.bn(self.depthwise(F.relu6(self.stem(x)))))
        gate = F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        x = torch.sigmoid(self.excite(gate)) * x
        return self.fc(self.dropout(x.view(x.shape[0], -1)))


class Concatenation(nn.Module):
    """Channels split in two, one half convolved, joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.branch = nn.Conv2d(2, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, dim=1)
        x = self.pool(torch.cat([left, torch.relu_(self.branch(right))], 1))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Mlp(nn.Module):
    """No BatchNorm, a normalisation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * 64, 16)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(F.gelu(self.norm(self.hidden(x.flatten(1)) / 2)))


EXPECTED = {
    Residual: [
        ("input", 0, ""),
        ("relu", 0, "relu"),
        ("batch_norm", 0, "bn2"),
        ("relu", 0, "relu"),
        ("mean", 0, ""),
    ],
    DepthwiseSqueezeExcite: [
        ("input", 0, ""),
        ("relu6", 0, ""),
        ("batch_norm", 0, "bn"),
        ("hardswish", 0, "act"),
        ("adaptive_avg_pool2d", 0, ""),
        ("relu", 0, ""),
        ("conv2d", 0, "excite"),
        ("sigmoid", 0, ""),
        ("mul", 0, ""),
    ],
    Concatenation: [
        ("input", 0, ""),
        ("conv2d", 0, "stem"),
        ("relu", 0, ""),
        ("cat", 0, ""),
        ("adaptive_avg_pool2d", 0, ""),
    ],
    Mlp: [
        ("input", 0, ""),
        ("linear", 0, "hidden"),
        ("div", 0, ""),
        ("layer_norm", 0, "norm"),
        ("gelu", 0, ""),
    ],
}


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(2)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def quantized(kind: type[nn.Module]) -> tuple[nn.Module, dict]:
    model = built(kind)
    edit = {"kind": "activation_grid", "sites": find_sites(model, images()), "bits": 8}
    for number, grid in enumerate(attach_(model, edit)):
        grid.set_range_(-0.1 * number, 2.0 + number)
    return model, edit
