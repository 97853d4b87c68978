"""Exported files of the zoo."""

from __future__ import annotations

import functools

import pytest

from compressbench.export.onnx import export_onnx
from tests.export.export_zoo import ArrayData, make, quantize


@pytest.fixture(autouse=True)
def alone(one_thread):
    """All tests of this folder."""


@pytest.fixture(scope="session")
def data():
    return ArrayData()


@pytest.fixture(scope="session")
def export(tmp_path_factory, data):
    """(model class, bits, granularity, with activations) -> artifact, path, report; made once."""

    @functools.cache
    def make_file(kind, bits=32, granularity="channel", static=False):
        example = data.prepare(data.split("train").inputs) if static else None
        made = quantize(make(kind), bits, granularity, example)
        path = tmp_path_factory.mktemp("exported") / "model.onnx"
        return made, path, export_onnx(made, data, path)

    return make_file
