"""An exported file that is not the model that it was made from is refused."""

from __future__ import annotations

import shutil

import pytest

from compressbench.export import onnx as exporting
from tests.end_to_end.running import run_here
from tests.faults.conftest import CHEAP
from tests.faults.test_row_31_shared_stores import other_weights


def test_row_17_a_file_that_was_changed_after_export_is_refused(cheap_run, tmp_path, monkeypatch):
    _, store = cheap_run
    for path in store.glob("entries/*/*"):
        if not {"artifact.json", "graph.onnx"} & {p.name for p in path.iterdir()}:
            shutil.rmtree(path)  # exports and measurements
    export = exporting.export_onnx

    def tampered(artifact, data, path, *more):
        report = export(artifact, data, path, *more)
        path.write_bytes(other_weights(path.read_bytes()))
        return report

    monkeypatch.setattr(exporting, "export_onnx", tampered)
    (tmp_path / "work").mkdir()
    done = run_here(CHEAP, tmp_path / "work", store)
    assert done.code == 3
    assert "agree on" in done.line
    assert not list((tmp_path / "work").rglob("model.onnx"))


@pytest.mark.parametrize("order", ["before", "after"])
def test_row_17_a_file_that_is_swapped_around_its_measurement_does_not_ship(
    cheap_run, tmp_path, monkeypatch, caplog, order
):
    from compressbench.measure import figures

    first, store = cheap_run
    for path in store.glob("entries/*/*"):
        if len(list(path.iterdir())) == 1:
            shutil.rmtree(path)  # measurements
    measure = figures.measure_model

    def swapped(artifact, file, *more, **options):
        content = file.read_bytes()
        if order == "before":
            file.write_bytes(content + b"\x32\x00")  # an empty field more, of the same meaning
        measured = measure(artifact, file, *more, **options)
        file.write_bytes(content + b"\x32\x00" if order == "after" else content)
        return measured

    monkeypatch.setattr(figures, "measure_model", swapped)
    (tmp_path / "work").mkdir()
    done = run_here(CHEAP, tmp_path / "work", store)
    shipped = [path.read_bytes() for path in (tmp_path / "work").rglob("model.onnx")]
    if order == "before":
        assert (done.code, shipped) == (3, [])
        assert "changed while it was measured" in done.line
    else:  # found when the file is read again, and exported again
        assert (done.code, shipped) == (0, [first.onnx])
        assert "is damaged" in caplog.text
