"""Zeros as bits: the tensors come back as they were, when the file is loaded, in fewer bytes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_zoo import Residual, make, quantize
from onnx import TensorProto, helper, numpy_helper

from compressbench import artifact as artifacts
from compressbench.core import Artifact
from compressbench.export.lowering.sparse import EACH, LARGEST, OVERHEAD, pack_zeros
from compressbench.export.onnx import export_onnx
from compressbench.measure.size import theoretical_bits

STATIC = {"BitwiseAnd", "CumSum", "Gather", "Split", "Reshape", "Mul", "Cast"}


def model_of(arrays: dict[str, np.ndarray]) -> ir.Model:
    """A graph that casts each of `arrays` to float and gives it back."""
    nodes = [helper.make_node("Cast", [n], [f"{n}_out"], to=TensorProto.FLOAT) for n in arrays]
    outputs = [
        helper.make_tensor_value_info(f"{n}_out", TensorProto.FLOAT, a.shape)
        for n, a in arrays.items()
    ]
    tensors = [ir.to_proto(ir.tensor(a, name=n)) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", [], outputs, tensors)
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    )


def sparse_array(seed: int, shape: tuple[int, ...], dtype, common: int, density: float):
    generator = np.random.default_rng(seed)
    high = {"int4": 8, "uint4": 16, "int2": 2}.get(np.dtype(dtype).name, 100)
    values = generator.integers(1, high, shape)
    return np.where(generator.random(shape) < density, values, common).astype(dtype)


def loaded(model: ir.Model) -> tuple[dict[str, np.ndarray], bytes]:
    content = ir.to_proto(model).SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {})
    return {n.removesuffix("_out"): v for n, v in zip(names, found, strict=True)}, content


@pytest.mark.parametrize("seed", range(3))
def test_every_type_and_odd_shapes_come_back_as_they_were(seed):
    arrays = {
        "floats": sparse_array(seed, (7, 5, 3, 3), np.float32, 0, 0.3) / 7,
        "more": sparse_array(seed + 3, (19, 17), np.float32, 0, 0.1) * -0.37,
        "signed": sparse_array(seed, (31, 3, 5, 3), np.int8, 0, 0.2),
        "unsigned": sparse_array(seed, (43, 29), np.uint8, 128, 0.15),
        "other": sparse_array(seed, (1, 1331), np.uint8, 3, 0.1),
        "four": sparse_array(seed, (39, 131), ml_dtypes.int4, 0, 0.05),
        "ufour": sparse_array(seed, (113, 22), ml_dtypes.uint4, 8, 0.05),
        "two": sparse_array(seed, (161, 80), ml_dtypes.int2, -1, 0.05),
        "few": sparse_array(seed, (20, 20), np.int8, 7, 0.1),  # would not pay for the nodes
        "dense": sparse_array(seed, (16, 16), np.int8, 0, 0.9),
        "small": sparse_array(seed, (5, 5), np.float32, 0, 0.1),
    }
    model = model_of(arrays)
    before = ir.to_proto(model).ByteSize()
    packed = pack_zeros(model.graph, 25)
    assert packed == arrays.keys() - {"dense", "small", "few"}
    found, content = loaded(model)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32), err_msg=name)
    assert len(content) < before


def test_a_bit_an_element_and_the_others_values_are_what_is_stored():
    array = sparse_array(0, (64, 36, 3, 3), np.float32, 0, 0.1)
    model = model_of({"w": array})
    pack_zeros(model.graph, 20)
    _, content = loaded(model)
    payload = array.size / 8 + 4 * np.count_nonzero(array)
    assert payload < len(content) < payload + 900  # names are not short yet


def test_before_opset_18_and_where_bytes_are_read_as_they_are_nothing_changes():
    model = model_of({"w": sparse_array(0, (40, 40), np.float32, 0, 0.1)})
    assert pack_zeros(model.graph, 17) == set()
    assert len(list(model.graph)) == 1


def test_large_tensors_are_taken_apart_one_by_one(monkeypatch):
    monkeypatch.setattr("compressbench.export.lowering.sparse.LARGEST", 600)
    assert LARGEST > 10**6
    arrays = {str(n): sparse_array(n, (17, 16), np.float32, 0, 0.1) for n in range(5)}
    model = model_of(arrays)
    pack_zeros(model.graph, 20)
    assert [node.op_type for node in model.graph].count("CumSum") == 3
    found, _ = loaded(model)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def pruned(density: float) -> Artifact:
    made = quantize(make(Residual), 32, "channel", None)
    generator = torch.Generator().manual_seed(0)
    conv = made.model.conv
    artifacts.set_mask_(conv, torch.rand(conv.weight.shape, generator=generator) < density)
    return made


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_a_pruned_model_is_a_smaller_file_that_computes_the_same(density, data, tmp_path):
    made = pruned(density)
    reports = [export_onnx(made, data, tmp_path / f"{o}.onnx", o) for o in (25, 17)]
    files = [(tmp_path / f"{o}.onnx") for o in (25, 17)]
    conv = made.model.conv.weight
    saved = 4 * int((conv == 0).sum()) - conv.numel() / 8
    assert files[1].stat().st_size - files[0].stat().st_size > saved - OVERHEAD - EACH
    inputs = data.prepare(data.split("validation").inputs).numpy()
    logits = []
    for number, file in enumerate(files):
        chosen = onnxruntime.SessionOptions()
        chosen.optimized_model_filepath = str(tmp_path / f"optimized{number}.onnx")
        chosen.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, chosen, providers=["CPUExecutionProvider"])
        logits.append(session.run(None, {"input": inputs})[0])
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    run = {n.op_type for n in onnx.load(tmp_path / "optimized0.onnx").graph.node}
    assert not run & (STATIC - {"Mul", "Reshape"}), "all of it is done when the file is loaded"
    reasons = [{row["layer"]: row["reason"] for row in report["layers"]} for report in reports]
    assert "zeros as bits" in reasons[0]["conv"]
    assert "zeros as bits" not in reasons[1]["conv"]
    assert "zeros as bits" not in reasons[0]["fc"]
    bits = [theoretical_bits(made, file) for file in files]
    assert bits[0] == bits[1], "a zero of a float weight counts as a float"


def test_what_is_stored_is_what_is_left(data, tmp_path):
    made = pruned(0.1)
    export_onnx(made, data, tmp_path / "model.onnx")
    tensors = onnx.load(tmp_path / "model.onnx").graph.initializer
    floats = [numpy_helper.to_array(t) for t in tensors if t.data_type == TensorProto.FLOAT]
    largest = max(floats, key=lambda a: a.size)
    assert largest.size in (216, 1 + int(made.model.conv.weight.count_nonzero()))
