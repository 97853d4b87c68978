"""What others could write into a store: never taken without a word, never shipped as measured."""

from __future__ import annotations

import json

import pytest

from compressbench.core.digests import copy_checked, file_digest
from compressbench.core.errors import CheckFailedError
from compressbench.store import manifest as manifests
from tests.end_to_end.running import run_here


def entry_with(store, name):
    """The folder of the only entry that has a file `name`."""
    (found,) = store.glob(f"entries/*/*/{name}")
    return found.parent


def resigned(folder, **changes):
    """Write the manifest of a changed entry anew, so that it fits the files that are there."""
    path = folder / manifests.MANIFEST
    content = {**json.loads(path.read_text()), **changes}
    path.unlink()
    kept = {name: content[name] for name in ("key", "parts", "meta", "seconds", "created")}
    path.write_bytes(manifests.compose(**kept, files=manifests.file_digests(folder)))


def other_weights(model):
    """The bytes of a file whose matrices have the opposite sign."""
    import onnx
    from onnx.numpy_helper import from_array, to_array

    graph = onnx.load_from_string(model)
    for tensor in graph.graph.initializer:
        if len(tensor.dims) == 2:
            tensor.CopyFrom(from_array(-to_array(tensor), tensor.name))
    return graph.SerializeToString()


def test_row_31_a_file_with_a_fitting_manifest_is_not_shipped_for_another(
    cheap_run, run_again, caplog
):
    first, store = cheap_run
    exported = entry_with(store, "model.onnx")
    (exported / "model.onnx").write_bytes(other_weights(first.onnx))
    resigned(exported)
    second = run_again(store)
    assert second.onnx == first.onnx
    assert "is not the file that was measured" in caplog.text
    figures = [run.stage("train")["figures"]["val/accuracy"] for run in (first, second)]
    assert figures[0] == figures[1]


def test_row_31_figures_of_another_file_are_measured_again(cheap_run, run_again, caplog):
    first, store = cheap_run
    for path in store.glob("entries/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["parts"]["kind"] in ("measure", "test"):
            figures = dict.fromkeys(manifest["meta"]["figures"], 0.99)
            resigned(path.parent, meta={**manifest["meta"], "figures": figures, "file_sha256": ""})
    second = run_again(store)
    assert caplog.text.count("was measured on another file") == 2
    for name in ("val/accuracy", "test/accuracy", "size/onnx_bytes"):
        assert second.stage("train")["figures"][name] == first.stage("train")["figures"][name]


def test_row_31_the_measurement_names_the_file_that_is_shipped(cheap_run):
    run, _ = cheap_run
    digest = file_digest(run.folder / "model.onnx")
    assert run.stage("train")["file_sha256"] == digest
    assert run.report["files"]["model.onnx"]["sha256"] == digest


def test_row_31_a_copy_with_another_digest_is_none(tmp_path):
    (tmp_path / "a").write_bytes(b"measured")
    digest = file_digest(tmp_path / "a")
    copy_checked(tmp_path / "a", tmp_path / "b", digest)
    (tmp_path / "a").write_bytes(b"swapped")
    with pytest.raises(CheckFailedError, match="not the file that was measured"):
        copy_checked(tmp_path / "a", tmp_path / "b", digest)
    assert (tmp_path / "b").read_bytes() == b"measured"
    with pytest.raises(CheckFailedError, match="not the file that was measured"):
        copy_checked(tmp_path / "a", tmp_path / "c", digest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_row_31_verify_deep_finds_figures_that_were_never_measured(cheap_run, tmp_path):
    _, store = cheap_run
    done = run_here(["store", "verify", "--deep"], tmp_path, store)
    assert (done.code, "2 measurements repeated, all figures the same" in done.out) == (0, True)
    for path in store.glob("entries/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["parts"]["kind"] == "measure":
            meta = manifest["meta"]
            figures = {**meta["figures"], "val/accuracy": 0.99}
            resigned(path.parent, meta={**meta, "figures": figures})
    done = run_here(["store", "verify", "--deep"], tmp_path, store)
    assert done.code == 3
    assert "val/accuracy is 0.99, measured again 0.49" in done.err
    done = run_here(["store", "verify", "--deep"], tmp_path, store)
    assert (done.code, "1 measurements repeated" in done.out) == (0, True)
