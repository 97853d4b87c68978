"""Every model of the zoo, at every storage: the file computes what the artifact does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from compressbench.core.edits import integer_weight, set_mask_
from compressbench.core.types import Artifact
from compressbench.export.onnx import export_onnx
from tests.export.export_zoo import (
    MODELS,
    Attention,
    Concat,
    Mobile,
    Perceptron,
    Residual,
    Shared,
    calibrate_,
    make,
    quantize,
    run,
)  # fmt: skip

pytestmark = pytest.mark.xdist_group("export_zoo")  # they share exports

WEIGHT_ONLY = [
    *((kind, 32) for kind in MODELS),
    (Mobile, 2),
    (Attention, 2),
    (Attention, 4),
    (Shared, 8),
]
STATIC = [*((kind, 8, "channel") for kind in MODELS), (Mobile, 3, "channel"), (Concat, 8, "tensor")]
QUANTIZED = [
    *((kind, bits, True) for kind, bits, _ in STATIC[:-1]),
    *((kind, bits, False) for kind, bits in WEIGHT_ONLY if bits < 32),
]


def _logits(artifact, data):
    inputs = data.prepare(data.split("validation").inputs)
    with torch.no_grad():
        return inputs, artifact.model(inputs).numpy()


@pytest.mark.parametrize(("kind", "bits"), WEIGHT_ONLY)
def test_weight_only_logits_equal_pytorch(kind, bits, export, data):
    artifact, path, _ = export(kind, bits)
    inputs, expected = _logits(artifact, data)
    np.testing.assert_allclose(run(path, inputs), expected, rtol=0, atol=2e-5 * np.ptp(expected))


@pytest.mark.parametrize(("kind", "bits", "granularity"), STATIC)
def test_static_logits_follow_pytorch(kind, bits, granularity, export, data):
    artifact, path, report = export(kind, bits, granularity, static=True)
    inputs, expected = _logits(artifact, data)
    tolerance = 0.02 * np.ptp(expected)  # a few activations round to the neighbouring step
    for optimize in (True, False):
        got = run(path, inputs, optimize)
        assert np.abs(got - expected).max() < tolerance
        assert np.abs(got - expected).mean() < tolerance / 8
    assert report["activation_sites"] == len(artifact.edits[-1]["sites"])


@pytest.mark.parametrize("kind", [Perceptron, Residual])
def test_few_bits_on_both_sides_keep_their_biases(kind, data, tmp_path):
    """In units of such coarse scales a bias would move every logit."""
    made = quantize(make(kind), 3, "channel", None)
    inputs, _ = _logits(made, data)
    edit = calibrate_(made.model, inputs, bits=4)
    made = Artifact(made.model, {}, (*made.edits, edit), frozenset())
    report = export_onnx(made, data, tmp_path / "model.onnx")
    assert any("too coarse" in row["reason"] for row in report["layers"])
    expected = _logits(made, data)[1]
    for optimize in (True, False):
        error = np.abs(run(tmp_path / "model.onnx", inputs, optimize) - expected).max(1)
        assert (error > 1e-4 * np.ptp(expected)).mean() <= 0.1  # a step that fell the other way


def test_the_specification_agrees_not_only_onnxruntime(export, data):
    artifact, path, _ = export(Mobile, 2)
    inputs, expected = _logits(artifact, data)
    got = ReferenceEvaluator(str(path)).run(None, {"input": inputs.numpy()})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def _integers(path):
    small = {"INT8", "UINT8", "INT4", "INT2"}
    found = []
    for tensor in onnx.load(path).graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if kind in small and len(tensor.dims) > 1:
            offset = 128 if kind == "UINT8" else 0
            found.append(numpy_helper.to_array(tensor).astype(np.int16) - offset)
    return found


@pytest.mark.parametrize(("kind", "bits", "static"), QUANTIZED)
def test_integers_in_the_file_are_those_of_the_artifact(kind, bits, static, export):
    """Up to the sign of a channel, and channels that a zero gamma erased."""
    artifact, path, _ = export(kind, bits, static=static)
    stored = _integers(path)
    layers = dict(artifact.model.named_modules())
    assert len(stored) == len(artifact.edits[0]["layers"])
    for name in artifact.edits[0]["layers"]:
        expected = integer_weight(layers[name]).numpy().astype(np.int16)
        assert any(_equal_up_to_sign(expected, values) for values in stored), name


def _equal_up_to_sign(expected, values):
    """Values as stored, or [in, out] as a MatMul reads them."""
    if values.ndim == 2 and values.T.shape == expected.shape and _same(expected, values.T):
        return True
    return values.shape == expected.shape and _same(expected, values)


def _same(expected, values):
    pairs = zip(expected, values, strict=True)
    return all((v == e).all() or (v == -e).all() or not v.any() for e, v in pairs)


def test_a_negative_gamma_turns_the_sign_and_a_zero_gamma_erases(export):
    artifact, path, _ = export(Residual, 8, static=True)
    stem = integer_weight(artifact.model.stem).numpy()
    stored = next(v for v in _integers(path) if v.shape == stem.shape)
    assert not stored[0].any()
    assert (stored[1] == -stem[1]).all()


def test_shared_weight_is_stored_once(export):
    for bits, static in ((32, False), (8, True)):
        _, path, _ = export(Shared, bits, static=static)
        shapes = [tuple(t.dims) for t in onnx.load(path).graph.initializer]
        assert shapes.count((8, 8, 3, 3)) == 1


def test_batch_is_dynamic(export, data):
    for kind in MODELS:
        _, path, _ = export(kind, 8, static=True)
        inputs = data.prepare(data.split("validation").inputs)
        whole = run(path, inputs)
        parts = np.concatenate([run(path, inputs[:1]), run(path, inputs[1:])])
        np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_masked_weights_are_zero_in_the_file(data, tmp_path):
    model = make(Mobile)
    keep = torch.rand_like(model.down.weight) > 0.5
    set_mask_(model.down, keep)
    path = tmp_path / "masked.onnx"
    export_onnx(quantize(model, 8, "channel", None), data, path)
    stored = next(v for v in _integers(path) if v.shape == tuple(keep.shape))
    assert not stored[~keep.numpy()].any()
    assert not any(t.data_type == onnx.TensorProto.BOOL for t in onnx.load(path).graph.initializer)


def test_three_dimensional_linear_keeps_its_matmul_integers(export):
    _, path, report = export(Attention, 8, static=True)
    assert {r["storage"] for r in report["layers"] if r["layer"] != "norm"} == {"uint8"}
    assert "Transpose" not in [
        n.op_type for n in onnx.load(path).graph.node if n.input[0] in _names(path)
    ]


def _names(path):
    return {tensor.name for tensor in onnx.load(path).graph.initializer}
