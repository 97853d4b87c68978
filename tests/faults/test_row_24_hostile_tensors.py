"""Files of tensors that lie about their content are refused in one line, and nothing is loaded."""

from __future__ import annotations

import json
import warnings

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.external_data import check_self_contained
from compressbench.export.traced import read_graph
from compressbench.models.checkpoint import load_checkpoint_


class Counting(nn.Module):
    """A weight and a counter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.register_buffer("count", torch.tensor(0, dtype=torch.int32))


def loaded(path):
    """The weight after loading; on a refusal, nothing of the file is in the model."""
    model = Counting()
    try:
        load_checkpoint_(model, path)
    except UserError as error:
        assert "\n" not in str(error)
        assert not model.weight.any() and not model.count
        raise
    return model.weight


def safetensors(path, header, data=bytes(20)):
    """A safetensors file with this header, a dict or text."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


WEIGHT = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
COUNT = {"dtype": "I32", "shape": [], "data_offsets": [16, 20]}
GOOD = {"weight": WEIGHT, "count": COUNT}
TWICE = f'{{"weight": {json.dumps(WEIGHT)}, "count": {json.dumps(COUNT)}, "weight": %s}}'
LIES = {
    "beyond the end": {**GOOD, "weight": {**WEIGHT, "data_offsets": [0, 1600]}},
    "backwards": {**GOOD, "weight": {**WEIGHT, "data_offsets": [16, 0]}},
    "negative": {**GOOD, "weight": {**WEIGHT, "data_offsets": [-16, 0]}},
    "overlapping": {**GOOD, "count": {**COUNT, "data_offsets": [12, 16]}},
    "with a hole": {**GOOD, "weight": {**WEIGHT, "shape": [2, 1], "data_offsets": [0, 8]}},
    "another shape": {**GOOD, "weight": {**WEIGHT, "shape": [2, 3]}},
    "a huge shape": {**GOOD, "weight": {**WEIGHT, "shape": [2**62, 2**62]}},
    "no such type": {**GOOD, "weight": {**WEIGHT, "dtype": "F33"}},
    "a name twice": TWICE % json.dumps(WEIGHT),
    "a name twice, of two types": TWICE % json.dumps({**WEIGHT, "dtype": "I32"}),
    "a field twice": '{"weight": {"dtype": "F32", "dtype": "I32", "shape": [2, 2], '
    f'"data_offsets": [0, 16]}}, "count": {json.dumps(COUNT)}}}',
    "a list": "[]",
    "nested": "[" * 100_000,
    "no text": "\0\0\0",
    "a line in a name": {**GOOD, "a\nb": {"dtype": "F32", "shape": [0], "data_offsets": [20, 20]}},
}


def test_row_24_the_plain_file_loads(tmp_path):
    data = torch.ones(4).numpy().tobytes() + bytes(4)
    assert loaded(safetensors(tmp_path / "c.safetensors", GOOD, data)).all()


@pytest.mark.parametrize("header", LIES.values(), ids=LIES)
def test_row_24_a_lying_header_is_refused(tmp_path, header):
    with pytest.raises(UserError, match=r"^checkpoint .*c\.safetensors: "):
        loaded(safetensors(tmp_path / "c.safetensors", header))


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_row_24_a_lying_length_is_refused(tmp_path, length):
    path = safetensors(tmp_path / "c.safetensors", GOOD)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(UserError, match="not a valid safetensors file"):
        loaded(path)


def quantized():
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)


ODD = {
    "sparse": lambda: torch.ones(2, 2).to_sparse(),
    "sparse by rows": lambda: torch.ones(2, 2).to_sparse_csr(),
    "meta": lambda: torch.ones(2, 2, device="meta"),
    "quantized": quantized,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "make"), ODD.items(), ids=ODD)
def test_row_34_a_tensor_without_dense_values_is_refused(tmp_path, kind, make):
    torch.save({"weight": make(), "count": torch.tensor(1)}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=f"'weight' is a {kind.split()[0]} tensor"):
        loaded(tmp_path / "c.pt")


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["c.pt", "c.safetensors"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(2, 2, dtype=torch.complex64)}, "'weight' is a complex tensor"),
        ({"weight": torch.ones(2, 2, dtype=torch.int8)}, "weight holds int8, .* model's float32"),
        ({"weight": torch.ones(2, 2, dtype=torch.bool)}, "weight holds bool, .* model's float32"),
        ({"weight": torch.full((2, 2), 1e300, dtype=torch.float64)}, "weight holds float64"),
        ({"count": torch.tensor(0.5)}, "count holds float32, .* the model's int32"),
        ({"count": torch.tensor(2**40)}, "count holds int64, .* the model's int32"),
    ],
)
def test_row_35_values_that_the_model_cannot_hold_are_refused(tmp_path, save, changes, message):
    path = tmp_path / ("c.pt" if save is torch.save else "c.safetensors")
    save({"weight": torch.ones(2, 2), "count": torch.tensor(1), **changes}, path)
    with pytest.raises(UserError, match=message):
        loaded(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_row_35_other_precisions_load(tmp_path, dtype):
    save_file({"weight": torch.ones(2, 2, dtype=dtype), "count": torch.tensor(3.0)},
              tmp_path / "c.safetensors")  # fmt: skip
    assert loaded(tmp_path / "c.safetensors").all()


def external(name, location):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph_with(place, location):
    """A graph with a tensor in another file: an initializer, an attribute, in a branch."""
    inner = external("secret", location)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    if place == "initializer":
        nodes, tensors = [helper.make_node("Identity", ["secret"], ["y"])], [inner]
    else:
        nodes, tensors = [helper.make_node("Constant", [], ["y"], value=inner)], []
    if place == "branch":
        branch = helper.make_graph(nodes, "branch", [], [output])
        nodes = [helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)]
    start = helper.make_tensor_value_info("x", TensorProto.BOOL, [])
    return helper.make_model(helper.make_graph(nodes, "g", [start], [output], tensors))


@pytest.mark.parametrize("place", ["initializer", "attribute", "branch"])
@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "beside"])
def test_row_24_a_model_that_names_another_file_is_refused(tmp_path, place, location):
    path = tmp_path / "inner" / "model.onnx"
    path.parent.mkdir()
    for secret in (tmp_path / "secret", path.parent / "beside"):
        secret.write_bytes(bytes(4))
    path.write_bytes(graph_with(place, location).SerializeToString())
    with pytest.raises(CheckFailedError, match="'secret' is in another file"):
        check_self_contained(path)
    with pytest.raises(CheckFailedError, match="'secret' is in another file"):
        read_graph(path, nn.Identity())


def test_row_24_a_model_that_holds_its_tensors_is_fine(tmp_path):
    whole = graph_with("initializer", "beside")
    whole.graph.initializer[0].CopyFrom(helper.make_tensor("secret", TensorProto.FLOAT, [1], [2]))
    onnx.save(whole, tmp_path / "model.onnx")
    check_self_contained(tmp_path / "model.onnx")
