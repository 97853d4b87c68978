"""Every kind of grid in one model, a branch each: the file computes what the model does."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from compressbench.core import edits
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid
from compressbench.core.types import Artifact
from compressbench.export.grids import WeightGrid
from compressbench.export.onnx import export_onnx
from compressbench.measure import size
from compressbench.measure.kernels import INTEGER, integer_kernels
from compressbench.models.resnet import ResNet
from tests.export.export_zoo import Attention, Perceptron, Residual, make, quantize, run
from tests.export.grid_branches import Branches, layer_grids, on_grids

pytestmark = pytest.mark.xdist_group("export_grids")  # they share three exports


@pytest.fixture(scope="module")
def branches(data, tmp_path_factory):
    """Activations none, static or dynamic -> artifact, path, report; made once."""

    @functools.cache
    def make_file(activation):
        model = make(Branches)
        made = on_grids(model, layer_grids(model), activation, data)
        path = tmp_path_factory.mktemp("grids") / "model.onnx"
        return made, path, export_onnx(made, data, path)

    return make_file


def differences(made, path, data):
    inputs = data.prepare(data.split("validation").inputs)
    with torch.no_grad():
        expected = made.model(inputs).numpy()
    return [np.abs(run(path, inputs, o) - expected) / np.ptp(expected) for o in (True, False)]


@pytest.mark.parametrize("activation", ["none", "static", "dynamic"])
def test_logits_follow_pytorch_on_every_grid(activation, branches, data):
    made, path, _ = branches(activation)
    for difference in differences(made, path, data):
        assert difference.max() < (2e-5 if activation == "none" else 0.02)
        assert difference.mean() < (5e-6 if activation == "none" else 0.0025)


def small_integers(path):
    """The 2-, 4- and 8-bit initializers as int16, by name."""
    kinds = {"INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2"}
    return {
        t.name: numpy_helper.to_array(t).astype(np.int16)
        for t in onnx.load(path).graph.initializer
        if onnx.TensorProto.DataType.Name(t.data_type) in kinds
    }


@pytest.mark.parametrize("activation", ["none", "static", "dynamic"])
def test_integers_are_steps_plus_zero_point_and_are_stored_once(activation, branches):
    made, path, report = branches(activation)
    stored = {k: v for k, v in small_integers(path).items() if v.ndim > 1}
    count = len(stored)
    kinds = {row["layer"]: row["storage"] for row in report["layers"]}
    for name in made.edits[0]["layers"]:
        layer = made.model.get_submodule(name)
        grouped = layer.weight_scale.shape[1] > 1
        steps = edits.integer_weight(layer).numpy()
        fits = [k for k, v in stored.items() if _matches(v, steps, grouped)]
        assert fits, (name, kinds[name])
        stored.pop(fits[0])
    assert count - len(stored) == len(made.edits[0]["layers"])
    for left in stored.values():  # zero points: one for each scale
        assert 1 in (left.shape[0], left.shape[-1])


def _matches(stored, steps, grouped):
    if not grouped:
        return stored.shape[1:] != (1, 1, 1) and is_row_shifted(stored, steps)
    if stored.ndim != 3 or stored.size != steps.size:
        return False
    return is_row_shifted(stored.reshape(-1, stored.shape[2]), steps.reshape(-1, stored.shape[2]))


def is_row_shifted(stored, steps):
    """Whether every row is the steps or their negatives plus one number; all equal: erased."""
    if stored.shape != steps.shape and stored.T.shape == steps.shape:
        stored = stored.T
    return stored.shape == steps.shape and all(
        np.ptp(a) == 0 or np.ptp(a - b) == 0 or np.ptp(a + b) == 0
        for a, b in zip(stored, steps, strict=True)
    )


@pytest.mark.parametrize("activation", ["none", "static", "dynamic"])
def test_the_table_says_which_kernels_run(activation, branches):
    _, path, report = branches(activation)
    kernels = [row["kernel"] for row in report["layers"]]
    counts = integer_kernels(path)
    assert sum(counts.get(name, 0) for name in INTEGER) == kernels.count("integer")
    rows_of = {row["layer"]: row for row in report["layers"]}
    assert rows_of["stem"]["kernel"] == "float"
    assert rows_of["stem"]["storage"] == "float32"
    assert rows_of["branches.group4.conv"]["granularity"] == "group of 2"
    if activation == "none":
        assert "integer" not in kernels
        return
    for name in ("narrow8", "full4", "asymmetric3", "asymmetric2"):
        assert {rows_of[f"branches.{name}.{layer}"]["kernel"] for layer in
                ("conv", "depthwise", "fc")} == {"integer"}  # fmt: skip
    assert "per group" in rows_of["branches.group4.conv"]["reason"]
    assert "zero point per channel" in rows_of["branches.asymmetric8.depthwise"]["reason"]
    uneven = rows_of["branches.asymmetric8.conv"]["kernel"]
    assert uneven == ("integer" if activation == "static" else "float")
    assert report["min_onnxruntime"] == "1.32"


def test_initializers_of_one_kind_lie_together(branches):
    """A compressor adapts to a kind: codes between floats would cost a tenth more."""
    content = branches("none")[1].read_bytes()
    largest = max(onnx.load_from_string(content).graph.initializer, key=lambda t: len(t.raw_data))
    assert content.index(largest.raw_data) < content.index(b"Reshape")
    kinds = [t.data_type for t in onnx.load(branches("none")[1]).graph.initializer]
    runs = [a for a, b in zip(kinds, [None, *kinds[:-1]], strict=True) if a != b]
    assert len(runs) == len(set(runs)) >= 5


def test_theoretical_bits_count_zero_points_at_their_width(branches):
    made, path, _ = branches("none")
    floats = sum(
        int(np.prod(t.dims)) * {1: 32, 7: 64}[t.data_type]
        for t in onnx.load(path).graph.initializer
        if t.data_type in (1, 7)
    )
    codes = 0
    for name, options in made.edits[0]["layers"].items():
        layer = made.model.get_submodule(name)
        codes += layer.weight.numel() * options["bits"]
        if not options["symmetric"]:
            codes += layer.weight_scale.numel() * options["bits"]
    assert size.theoretical_bits(made, path) == floats + codes


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_grid_times_factors_is_the_grid_of_the_product(groups, asymmetric):
    generator = np.random.default_rng(0)
    shape = (7,) if groups is None else (7, groups)
    zero = generator.integers(0, 16, shape) if asymmetric else None
    low = np.full(shape, -8) if zero is None else -zero
    codes = generator.integers(0, 16, (*shape, 7 * 6 * 5 // low.size))
    steps = (low[..., None] + codes).astype(np.int16).reshape(7, 6, 1, 5)
    grid = WeightGrid(steps, generator.random(shape) + 0.1, 4, zero)
    factor = np.array([1.0, -1.0, 0.0, 2.5, -0.3, -7.0, 1e-3])
    product = grid.times(factor)
    np.testing.assert_allclose(
        weight_of(product), weight_of(grid) * factor.reshape(-1, 1, 1, 1), rtol=1e-12
    )
    if asymmetric:
        codes = product.rows() + product.zero_point[..., None]
        assert codes.min() >= 0
        assert codes.max() <= 15


def weight_of(grid):
    return (grid.rows() * grid.scale[..., None]).reshape(grid.steps.shape)


def test_groups_of_a_matmul(data, tmp_path):
    model = make(Attention)
    names = ("embed", "query", "value", "fc")
    made = on_grids(model, dict.fromkeys(names, Grid(4, "group", 8, symmetric=False)), "none", data)
    export_onnx(made, data, tmp_path / "model.onnx")
    for difference in differences(made, tmp_path / "model.onnx", data):
        assert difference.max() < 2e-5


def test_older_opsets_get_wider_integers(data, tmp_path):
    path = tmp_path / "model.onnx"
    made = quantize(make(Attention), 4, "channel", None)
    report = export_onnx(made, data, path, 17)
    model = onnx.load(path)
    assert (report["opset"], model.opset_import[0].version, model.ir_version) == (17, 17, 8)
    assert report["min_onnxruntime"] == "1.15"
    assert {r["storage"] for r in report["layers"] if r["bits"] == 4} == {"int8"}
    assert differences(made, path, data)[0].max() < 2e-5
    made = quantize(make(Perceptron), 2, "channel", None)
    report = export_onnx(made, data, path, 24)
    assert (report["opset"], report["min_onnxruntime"]) == (21, "1.23")
    assert {r["storage"] for r in report["layers"]} == {"int4"}
    assert differences(made, path, data)[0].max() < 2e-5


@pytest.mark.parametrize("opset", [16, 26, "21", True, 21.0, None])
def test_an_opset_that_we_cannot_write_is_refused(opset, data, tmp_path):
    made = Artifact(make(Perceptron), {}, (), frozenset())
    with pytest.raises(UserError, match=r"opset must be an integer in \[17, 25\], got"):
        export_onnx(made, data, tmp_path / "model.onnx", opset)


def test_activations_of_few_bits_keep_their_kernels(data, tmp_path):
    model = make(Residual)
    made = on_grids(model, dict.fromkeys(("stem", "conv", "fc"), Grid(8)), "static", data, bits=5)
    path = tmp_path / "model.onnx"
    report = export_onnx(made, data, path)
    assert [row["kernel"] for row in report["layers"]] == ["integer"] * 3
    counts = integer_kernels(path)
    assert (counts["QLinearConv"], counts["QGemm"]) == (2, 1)
    largest, mean = (np.stack([f(d) for d in differences(made, path, data)]).max() for f in
                     (np.max, np.mean))  # fmt: skip
    assert largest < 0.07  # a value that rounds to the other side moves by a step of 1/31
    assert mean < 0.005


@pytest.mark.long
def test_3_bit_codes_in_int4_download_at_their_entropy(data, tmp_path):
    """Within 5 % of (entropy of each layer's codes + everything else as stored)."""
    torch.manual_seed(0)
    model = ResNet(list(data.spec.input_shape), 5, 56, 16).eval()
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    made = on_grids(model, dict.fromkeys(layers, Grid(3)), "none", data)
    path = tmp_path / "model.onnx"
    export_onnx(made, data, path)
    codes = [edits.integer_weight(model.get_submodule(n)).numpy().ravel() for n in layers]
    shares = [np.unique(c, return_counts=True)[1] / c.size for c in codes]
    entropy = sum(-(p * np.log2(p)).sum() * c.size for p, c in zip(shares, codes, strict=True)) / 8
    stored = sum((c.size + 1) // 2 for c in codes)
    assert sum(c.size for c in codes) > 850_000
    assert size.download_bytes(path) <= 1.05 * (entropy + path.stat().st_size - stored)
