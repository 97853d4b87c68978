"""Layers behind padding, slices and other moves run on the kernels that the report names."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Artifact
from compressbench.export.onnx import export_onnx
from compressbench.export.optimized import Meant, check_kernels, optimized_graph
from tests.export.export_zoo import _round_, calibrate_

LEVELS = onnxruntime.GraphOptimizationLevel
MOVES = {
    "none": lambda x: x,
    "pad": lambda x: F.pad(x, (0, 1, 0, 2)),
    "pad_twice": lambda x: F.pad(F.pad(x, (1, 0)), (0, 0, 0, 1)),
    "crop": lambda x: F.pad(x, (-1, 1, 0, -2)),
    "pad_channels": lambda x: F.pad(x, (0, 0, 0, 0, 0, 4)),
    "pad_then_slice": lambda x: F.pad(x, (0, 1, 0, 1))[:, :, 1:],
    "reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "slice": lambda x: x[:, :, 1:, ::2],
    "slice_channels": lambda x: x[:, 2:6],
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split([3, 5], 1)[1],
    "transpose": lambda x: x.transpose(2, 3),
    "shuffle": lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
    "flip": lambda x: x.flip(3),
    "roll": lambda x: x.roll(1, 2),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "parts": lambda x: torch.cat([x[:, :3], x[:, 5:]], 1),
}
PAD_OFF_GRID = {"pad_ones": lambda x: F.pad(x, (0, 1, 0, 1), value=0.9173)}


class Branches(nn.Module):
    """A stem, then for each move a layer behind it; the means of all go to a Linear."""

    def __init__(self, kind, moves):
        super().__init__()
        self.kind, self.moves = kind, moves
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        moved = {name: move(torch.zeros(2, 8, 12, 12)) for name, move in moves.items()}
        self.layers = nn.ModuleDict({name: _layer(kind, x.shape) for name, x in moved.items()})
        self.fc = nn.LazyLinear(5)
        self(torch.zeros(2, 3, 12, 12))

    def forward(self, x):
        x = F.relu(self.stem(x))
        outputs = []
        for name, layer in self.layers.items():
            y = self.moves[name](x)
            y = F.relu(layer(y.flatten(1) if self.kind == "linear" else y))
            outputs.append(y if y.ndim == 2 else y.mean((2, 3)))
        return self.fc(torch.cat(outputs, 1))


def _layer(kind, shape):
    channels = shape[1]
    match kind:
        case "convolution":
            return nn.Conv2d(channels, 6, 3, padding=1)
        case "depthwise":
            return nn.Conv2d(channels, channels, 3, groups=channels, bias=False)
        case "transposed":
            return nn.ConvTranspose2d(channels, 6, 3)
        case _:
            return nn.Linear(shape[1:].numel(), 6)


def _artifact(model, data, left=()):
    """8-bit weights per channel, but for the layers `left`, and 8-bit activations."""
    layers = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and name not in left:
            _round_(layer, 8, "channel")
            layers[name] = {"bits": 8, "granularity": "channel"}
    inputs = data.prepare(data.split("train").inputs)
    edits = ({"kind": "weight_grid", "layers": layers}, calibrate_(model, inputs))
    return Artifact(model.eval(), {}, edits, frozenset())


def _session(path, level, folder):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(path, options)
    return session, onnx.load(folder / "optimized.onnx").graph


def _scales(graph):
    """The number of weight scales of every integer convolution, and of every rounded weight."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type == "QLinearConv":
            found.append(sizes[node.input[4]])
        elif node.op_type in {"Conv", "ConvTranspose", "Gemm"} and node.input[1] in made:
            weight = made[node.input[1]]
            if weight.op_type == "DequantizeLinear" and ranks.get(weight.input[0], 0) > 1:
                found.append(sizes[weight.input[1]])
    return found


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("convolution", False),
        ("convolution", True),
        ("depthwise", False),
        ("linear", True),
        ("transposed", False),
    ],
)
def test_what_runs_is_what_the_report_says(kind, left, data, tmp_path):
    torch.manual_seed(5)
    model = Branches(kind, MOVES)
    inside = {f"layers.{name}" for name in MOVES}
    made = _artifact(model, data, inside if left else ())
    report = export_onnx(made, data, tmp_path / "model.onnx")
    kernels = {row["layer"]: row["kernel"] for row in report["layers"]}
    float_ones = inside if left or kind == "transposed" else set()
    assert {n for n, kernel in kernels.items() if kernel == "float"} == float_ones
    inputs = data.prepare(data.split("validation").inputs)
    with torch.no_grad():
        expected = made.model(inputs).numpy()
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_EXTENDED,
                  LEVELS.ORT_ENABLE_ALL):  # fmt: skip
        session, graph = _session(tmp_path / "model.onnx", level, tmp_path)
        (got,) = session.run(None, {"input": inputs.numpy()})
        assert np.abs(got - expected).mean() < 0.0025 * np.ptp(expected)
        assert 1 not in _scales(graph)  # what ONNX Runtime rounds itself has one scale
    operators = [node.op_type for node in graph.node]
    integer = sum(operators.count(name) for name in ("QLinearConv", "QGemm"))
    assert integer == list(kernels.values()).count("integer")


def test_a_pad_off_the_grid_stays_float(data, tmp_path):
    made = _artifact(Branches("convolution", PAD_OFF_GRID), data)
    report = export_onnx(made, data, tmp_path / "model.onnx")
    assert [row["kernel"] for row in report["layers"]] == ["integer", "float", "integer"]


def _convolution(weight):
    """QuantizeLinear -> DequantizeLinear -> Conv with float weights -> QuantizeLinear -> ..."""
    node = onnx.helper.make_node
    grid = [onnx.numpy_helper.from_array(np.float32(0.02), "scale"),
            onnx.numpy_helper.from_array(np.uint8(128), "zero")]  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("Conv", ["d", "w"], ["c"]),
        node("QuantizeLinear", ["c", "scale", "zero"], ["r"]),
        node("DequantizeLinear", ["r", "scale", "zero"], ["y"]),
    ]
    shaped = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [shaped("x", 1, ["n", 3, 8, 8])], [shaped("y", 1, ["n", 4, 6, 6])],
        [*grid, onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_weights_that_the_runtime_rounds_are_refused(tmp_path):
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    onnx.save(_convolution(weight), tmp_path / "model.onnx")
    graph = optimized_graph(tmp_path / "model.onnx")
    with pytest.raises(CheckFailedError, match=r"rounds the weights \[4, 3, 3, 3\] .* 1 scale"):
        check_kernels(graph, [])


@pytest.mark.parametrize("change", ["steps", "scale", "calls"])
def test_other_integers_than_meant_are_refused(change, data, tmp_path):
    torch.manual_seed(6)
    made = _artifact(Branches("convolution", {"none": MOVES["none"]}), data)
    export_onnx(made, data, tmp_path / "model.onnx")
    graph = optimized_graph(tmp_path / "model.onnx")
    meant = [_meant(made, name) for name in ("stem", "layers.none", "fc")]
    check_kernels(graph, meant)
    one = meant[1]
    steps = -one.steps if change == "steps" else one.steps
    scale = one.scale * 1.01 if change == "scale" else one.scale
    meant[1] = Meant(one.layer, steps, scale, 2 if change == "calls" else 1)
    with pytest.raises(CheckFailedError, match="ONNX Runtime"):
        check_kernels(graph, meant)


def _meant(made, name):
    layer = made.model.get_submodule(name)
    scale = layer.weight_scale.double().flatten()
    steps = torch.round(layer.weight.double() / layer.weight_scale.double())
    return Meant(name, steps.to(torch.int16).numpy(), scale.numpy(), 1)


def test_an_unused_part_of_a_split_has_a_name(data, tmp_path):
    """ONNX Runtime crashes where it has none."""
    made = Artifact(Branches("convolution", {"chunk": MOVES["chunk"]}).eval(), {}, (), frozenset())
    export_onnx(made, data, tmp_path / "model.onnx")
    (split,) = (n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "Split")
    assert all(split.output)
    inputs = data.prepare(data.split("validation").inputs)
    session, _ = _session(tmp_path / "model.onnx", LEVELS.ORT_ENABLE_ALL, tmp_path)
    with torch.no_grad():
        expected = made.model(inputs).numpy()
    np.testing.assert_allclose(session.run(None, {"input": inputs.numpy()})[0], expected, atol=1e-5)
