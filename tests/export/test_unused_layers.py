"""Layers whose results nobody reads are not in the file, and what is in float64 is not rounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.activation_sites import find_sites
from compressbench.core.errors import CheckFailedError
from compressbench.export.grids import read_grids
from compressbench.export.onnx import export_onnx
from compressbench.export.translate import to_graph
from tests.export.export_zoo import CLASSES, make, quantize, run


class Idle(nn.Module):
    """`back` is called for nothing, `never` not at all, and one mean is taken in float64."""

    def __init__(self):
        super().__init__()
        self.stem, self.back, self.never = (
            nn.Conv2d(inputs, 7, 3, padding=1) for inputs in (3, 7, 7)
        )
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x):
        x = F.relu(self.stem(x))
        self.back(x)
        return self.fc(x.double().mean((2, 3)).float())


@pytest.mark.parametrize("bits", [32, 8])
def test_a_layer_whose_result_nobody_reads_is_not_in_the_file(bits, data, tmp_path):
    inputs = data.prepare(data.split("train").inputs)
    made = quantize(make(Idle), bits, "channel", inputs if bits == 8 else None)
    report = export_onnx(made, data, tmp_path / "model.onnx")
    rows = {row["layer"]: row for row in report["layers"]}
    assert list(rows) == ["stem", "back", "never", "fc"]
    for name in ("back", "never"):
        assert (rows[name]["bits"], rows[name]["kernel"]) == (0, None)
        assert rows[name]["reason"] == "not in the file: the output does not depend on it"
    assert rows["stem"]["bits"] == rows["fc"]["bits"] == bits
    with torch.no_grad():
        expected = made.model(inputs).numpy()
    assert abs(run(tmp_path / "model.onnx", inputs) - expected).max() < 0.02 * abs(expected).max()


def test_a_quantized_weight_that_the_graph_lost_is_refused(data):
    inputs = data.prepare(data.split("train").inputs)
    made = quantize(make(Idle), 8, "channel", None)
    graph = to_graph(made.model, inputs[:2], 20).graph
    with pytest.raises(CheckFailedError, match="back: its quantized weight is not in the exported"):
        read_grids(made, graph, {"never"})


def test_sums_in_float64_are_no_sites():
    functions = [s["function"] for s in find_sites(make(Idle), torch.rand(2, 3, 12, 12))]
    assert "relu" in functions
    assert "mean" not in functions
