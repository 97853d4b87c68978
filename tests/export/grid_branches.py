"""A model with layers of every kind on one kind of grid each."""

from __future__ import annotations

from dataclasses import asdict

from torch import nn
from torch.nn import functional as F

from compressbench.core import activation_quantizers, edits
from compressbench.core import artifact as artifacts
from compressbench.core.grid import Grid, round_to_grid, rows, scale_of
from compressbench.core.types import Artifact
from compressbench.quantization.observers.dynamic import Dynamic
from tests.export.export_zoo import calibrate_

GRIDS = {
    "narrow8": Grid(8),
    "full8": Grid(8, narrow=False),
    "full4": Grid(4, narrow=False),
    "asymmetric8": Grid(8, symmetric=False),
    "asymmetric3": Grid(3, symmetric=False),
    "asymmetric2": Grid(2, symmetric=False),
    "tensor8": Grid(8, "tensor", symmetric=False),
    "group4": Grid(4, "group", 2),
    "group8": Grid(8, "group", 2, symmetric=False),
}


class Branch(nn.Module):
    """A convolution, a depthwise one, both with BatchNorm, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.bn2(self.depthwise(F.relu(self.bn(self.conv(x))))))
        return self.fc(x.mean((2, 3)))


class Branches(nn.Module):
    """A stem that stays in float, then a branch for each grid."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.branches = nn.ModuleDict({name: Branch() for name in GRIDS})

    def forward(self, x):
        x = F.relu(self.stem(x))
        return sum(branch(x) for branch in self.branches.values())


def on_grids(model, grids, activation, data, bits=8):
    """The artifact whose layers `grids` are rounded to the nearest number of a min-max grid."""
    for name, grid in grids.items():
        layer = model.get_submodule(name)
        low, high = rows(layer.weight, grid).aminmax(dim=1)
        shape = grid.scale_shape(layer.weight)
        scale, zero = scale_of(low, high, grid)
        zero = None if zero is None else zero.reshape(shape)
        found = round_to_grid(layer.weight, scale.reshape(shape), grid, zero)
        layer.weight.data = found.weight
        edits.set_scale_(layer, found.scale, found.zero_point)
    done = [{"kind": "weight_grid", "layers": {n: asdict(g) for n, g in grids.items()}}]
    inputs = data.prepare(data.split("train").inputs)
    if activation == "static":
        done.append(calibrate_(model, inputs, bits))
    if activation == "dynamic":
        done.append(Dynamic().edit(model, inputs[:2], grids))
        activation_quantizers.attach_(model, done[-1])
    made = Artifact(model, {}, tuple(done), frozenset())
    artifacts.check(made)
    return made


def layer_grids(model):
    """The grid of each branch for its layers; depthwise weights have one input channel."""
    found = {}
    for name, grid in GRIDS.items():
        for layer in ("conv", "depthwise", "fc"):
            single = layer == "depthwise" and grid.group_size is not None
            chosen = Grid(grid.bits, symmetric=grid.symmetric) if single else grid
            found[f"branches.{name}.{layer}"] = chosen
    return found
