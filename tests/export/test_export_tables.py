"""Tables whose rows are looked up: integers in the file, and in the memory of the runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from compressbench.config.instantiate import instantiate
from compressbench.core.grid import Grid
from compressbench.core.types import (
    TRAINED,
    Artifact,
    Context,
    DataSpec,
    Runtime,
    Split,
    Tokens,
)
from compressbench.export.onnx import export_onnx
from compressbench.measure.macs import macs
from compressbench.quantization.codebook import share_weights_
from compressbench.quantization.grids.weights import quantize_weights_
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.rounding.nearest import Nearest

ROWS, WIDTH, LENGTH = 403, 6, 5
GRIDS = {
    "channel8": Grid(8),
    "wide8": Grid(8, narrow=False, power_of_two=True),
    "tensor8": Grid(8, "tensor"),
    "uneven8": Grid(8, symmetric=False),
    "tensor4": Grid(4, "tensor", symmetric=False),
    "channel3": Grid(3),
    "group4": Grid(4, "group", 2),
    "uneven2": Grid(2, "group", 3, symmetric=False),
}
BOOKS = {"book4": 4, "book2": 2}
FLOAT = "left"


class Texts:
    """Random ids."""

    spec = DataSpec("ids", (LENGTH,), tuple("abcd"), (), (), tokens=Tokens(ROWS, 0, "none"))

    def split(self, name):
        generator = torch.Generator().manual_seed(1)
        return Split(self.spec.noise(24, generator), torch.arange(24) % 4)

    def prepare(self, inputs):
        return inputs.long()


class Tables(nn.Module):
    """The mean rows of tables of every kind, side by side; one is looked up by constants, too."""

    def __init__(self):
        super().__init__()
        names = (*GRIDS, *BOOKS, FLOAT)
        self.tables = nn.ModuleDict({n: nn.Embedding(ROWS, WIDTH) for n in names})
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.register_buffer("numbers", torch.arange(LENGTH), persistent=False)

    def forward(self, ids):
        rows = [table(ids) for table in self.tables.values()]
        rows += [self.places(self.numbers).expand_as(rows[0])]
        return torch.cat(rows, 2).flatten(1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(the artifact, its file, the report, the float tables)"""
    folder: Path = tmp_path_factory.mktemp("tables")
    torch.manual_seed(0)
    model = Tables().eval()
    with torch.no_grad():
        model.tables["channel8"].weight[3] = 0.0
    before = {n: m.weight.detach().clone() for n, m in model.tables.items()}
    grids = {f"tables.{name}": grid for name, grid in GRIDS.items()} | {"places": Grid(8)}
    context = Context(Texts(), Runtime(), 0, folder, instantiate)
    edits = (
        quantize_weights_(model, grids, Nearest(MinMax()), context),
        share_weights_(model, {f"tables.{name}": bits for name, bits in BOOKS.items()}),
    )
    artifact = replace(Artifact(model, {}, (), frozenset({TRAINED})), edits=edits)
    path = folder / "model.onnx"
    return artifact, path, export_onnx(artifact, Texts(), path), before


def nearest_by_hand(weight: np.ndarray, grid: Grid) -> np.ndarray:
    """One number after the other, in float64."""
    result = np.empty_like(weight, np.float64)
    size = {"tensor": weight.size, "channel": WIDTH, "group": grid.group_size}[grid.granularity]
    flat = weight.astype(np.float64).reshape(-1, size)
    for row, numbers in enumerate(flat):
        if grid.symmetric:
            low, high = -(2 ** (grid.bits - 1) - int(grid.narrow)), 2 ** (grid.bits - 1) - 1
            step = max(abs(min(numbers.min(), 0)) / -low, max(numbers.max(), 0) / high) or 1.0
            if grid.power_of_two:
                step = 2.0 ** np.ceil(np.log2(step))
            offset = 0
        else:
            low, high = min(numbers.min(), 0), max(numbers.max(), 0)
            step = (high - low) / (2**grid.bits - 1)
            offset = round(-low / step)
            low, high = -offset, 2**grid.bits - 1 - offset
        for column, number in enumerate(numbers):
            steps = min(max(round(number / step), low), high)
            result.reshape(-1, size)[row, column] = steps * step
    return result


@pytest.mark.parametrize("name", GRIDS)
def test_rows_are_rounded_as_by_hand(stored, name):
    artifact, _, _, before = stored
    found = artifact.model.tables[name].weight.detach().numpy()
    expected = nearest_by_hand(before[name].numpy(), GRIDS[name])
    step = np.abs(found - expected)
    assert np.mean(step > 1e-5) < 0.003, "ties may fall to either side in float32"


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_the_file_gives_the_rows_of_the_model(stored, batch):
    artifact, path, _, _ = stored
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = Texts.spec.noise(batch, torch.Generator().manual_seed(batch))
    (found,) = session.run(None, {"input": ids.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, artifact.model(ids).numpy(), rtol=1e-6, atol=1e-7)


def test_the_report_says_how_each_is_stored(stored):
    _, path, report, _ = stored
    rows = {row["layer"].removeprefix("tables."): row for row in report["layers"]}
    kinds = {
        name: (row["storage"], row["granularity"], row["kernel"]) for name, row in rows.items()
    }
    assert kinds == {
        "channel8": ("int8", "channel", "lookup"),
        "wide8": ("int8", "channel", "lookup"),
        "tensor8": ("int8", "tensor", "lookup"),
        "uneven8": ("uint8", "channel", "lookup"),
        "tensor4": ("uint4", "tensor", "lookup"),
        "channel3": ("int4", "channel", "lookup"),
        "group4": ("int4", "group of 2", "lookup"),
        "uneven2": ("uint2", "group of 3", "lookup"),
        "book4": ("uint4", "codebook of 16", "lookup"),
        "book2": ("uint2", "codebook of 4", "lookup"),
        "left": ("float32", None, "float"),
        "places": ("int8", "channel", "lookup"),
    }
    assert macs(path) == 0, "rows are looked up, nothing is multiplied and added"


def test_tables_stay_integers_in_file_and_memory(stored, tmp_path):
    _, path, _, _ = stored
    tables = [t for t in onnx.load(path).graph.initializer if np.prod(t.dims) == ROWS * WIDTH]
    assert len(tables) == len(GRIDS) + len(BOOKS) + 1
    assert sum(t.data_type == onnx.TensorProto.FLOAT for t in tables) == 1, "the one left float"
    chosen = onnxruntime.SessionOptions()
    chosen.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    chosen.log_severity_level = 3
    onnxruntime.InferenceSession(path, chosen, providers=["CPUExecutionProvider"])
    kept = [t for t in onnx.load(tmp_path / "optimized.onnx").graph.initializer
            if np.prod(t.dims) == ROWS * WIDTH]  # fmt: skip
    eight = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    assert sum(t.data_type in eight for t in kept) == len(GRIDS) + len(BOOKS)
