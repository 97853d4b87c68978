"""The coupled channels of plain networks, beside those of Torch-Pruning."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.models.mobilenet_v2 import MobileNetV2
from compressbench.models.resnet import ResNet
from compressbench.models.small_cnn import SmallCnn
from compressbench.models.vgg_small import VggSmall
from compressbench.pruning.channels.settling import settled_coupling
from tests.pruning.channel_zoo import Flat, Mobile, Perceptron, Residual, Shared, made

pruning = pytest.importorskip("torch_pruning")


class Dense(nn.Module):
    """Every layer reads all maps before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3)
        self.layers = nn.ModuleList(nn.Conv2d(7 + 5 * i, 5, 3, padding=1) for i in range(3))
        self.norm, self.fc = nn.BatchNorm2d(22), nn.Linear(22, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return self.fc(self.norm(x).mean((2, 3)))


def coupled_by_peer(model: nn.Module, inputs: torch.Tensor) -> set[frozenset[tuple[str, int]]]:
    """The sets of output channels (layer, channel) that Torch-Pruning removes together."""
    copy = deepcopy(model).eval().requires_grad_(True)
    names = {module: name for name, module in copy.named_modules()}
    graph = pruning.DependencyGraph().build_dependency(copy, inputs, verbose=False)
    found = set()
    for name, layer in copy.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        for channel in range(len(layer.weight)):
            group = graph.get_pruning_group(layer, prune, [channel])
            if any(
                not item.dep.target.outputs
                for item in group
                if item.dep.target.module is layer
                and graph.is_out_channel_pruning_fn(item.dep.handler)
            ):
                continue
            members = {
                (names[item.dep.target.module], index)
                for item in group
                if graph.is_out_channel_pruning_fn(item.dep.handler)
                and isinstance(item.dep.target.module, (nn.Conv2d, nn.Linear))
                for index in item.idxs
            }
            found.add(frozenset({*members, (name, channel)}))
    return found


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: SmallCnn((3, 8, 8), 3), 8), (lambda: ResNet((3, 8, 8), 3, 20), 8),
        (lambda: VggSmall((3, 8, 8), 3, 8), 8), (lambda: MobileNetV2((3, 16, 16), 3, 0.1), 16),
        (Residual, 8), (Mobile, 8), (Perceptron, 8), (Flat, 8), (Shared, 8), (Dense, 8),
    ],
    ids=["small_cnn", "resnet20", "vgg_small", "mobilenet_v2", "residual", "mobile", "mlp",
         "flat", "shared", "dense"],
)  # fmt: skip
def test_the_same_channels_go_together(make, size):
    model, inputs = made(make), torch.randn(2, 3, size, size)
    coupling = settled_coupling(model, inputs)
    ours = {
        frozenset((name, channel) for name, atoms in part.channels.items() for channel in atoms[a])
        for part in coupling.parts
        for a in part.atoms
    }
    assert ours == coupled_by_peer(model, inputs)
