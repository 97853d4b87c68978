"""Biases are integers only where their units are fine enough for the file to equal the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressbench.core.grid import Grid
from compressbench.export.onnx import export_onnx
from tests.export.export_zoo import make
from tests.export.grid_branches import on_grids
from tests.export.test_export_grids import differences


class Blocks(nn.Module):
    """Residual blocks of seven channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(7)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(7, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU())
            for _ in range(2)
        )
        self.fc = nn.Linear(7, 5)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("bits", "activation_bits", "kernel"),
    [(8, 8, "integer"), (8, 5, "integer"), (8, 4, "float"), (7, 4, "float"), (6, 6, "integer"),
     (6, 5, "float"), (5, 4, "float"), (4, 7, "integer"), (3, 8, "integer"), (2, 8, "integer"),
     (2, 7, "float"), (2, 4, "float")],
)  # fmt: skip
def test_file_equals_model_for_every_pair_of_widths(bits, activation_bits, kernel, data, tmp_path):
    """Where units of int32 biases are too coarse, the layers compute in float."""
    model = make(Blocks)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    grids = dict.fromkeys(layers, Grid(bits))
    made = on_grids(model, grids, "static", data, bits=activation_bits)
    path = tmp_path / "model.onnx"
    report = export_onnx(made, data, path)
    assert {row["kernel"] for row in report["layers"]} == {kernel}
    for difference in differences(made, path, data):
        assert difference.mean() < (0.004 if kernel == "integer" else 1e-4)


class Silent(nn.Module):
    """Nothing reaches the head, so that its biases are all there is."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(432, 12), nn.Linear(12, 5)
        self.body.bias.data -= 100
        self.head.weight.data *= 1e5

    def forward(self, x):
        return self.head(torch.relu(self.body(x.flatten(1))))


def test_biases_that_are_small_beside_their_unit_stay_in_float(data, tmp_path):
    made = on_grids(Silent().eval(), dict.fromkeys(("body", "head"), Grid(8)), "static", data)
    path = tmp_path / "model.onnx"
    rows = {row["layer"]: row for row in export_onnx(made, data, path)["layers"]}
    assert "too coarse" in rows["head"]["reason"] and rows["body"]["kernel"] == "integer"
    for difference in differences(made, path, data):
        assert difference.max() < 1e-5


class Again(nn.Module):
    """A convolution with a bias that is called twice, and channels that data choose."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        chosen = torch.nonzero(x.mean((0, 2, 3)) > -1).flatten()
        return self.fc(x[:, chosen].mean((2, 3)))


@pytest.mark.parametrize(("activation", "bits"), [("dynamic", 8), ("static", 4)])
def test_layers_called_twice_and_channels_that_are_not_known(activation, bits, data, tmp_path):
    layers = dict.fromkeys(("stem", "twice", "fc"), Grid(8))
    made = on_grids(make(Again), layers, activation, data, bits=bits)
    path = tmp_path / "model.onnx"
    export_onnx(made, data, path)
    for difference in differences(made, path, data):
        assert difference.mean() < 0.004
