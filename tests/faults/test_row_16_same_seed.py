"""The same seed gives the same bytes: in another process, and whether the store had it or not."""

from __future__ import annotations

import pytest

from tests.end_to_end.running import read_run, run_process
from tests.faults.conftest import CHEAP

EXACT = ("val/accuracy", "test/accuracy", "size/onnx_bytes", "size/download_bytes", "compute/macs")


def results(run):
    files = {name: about["sha256"] for name, about in run.report["files"].items()}
    stage = run.stage("train")
    kept = {n: files[n] for n in ("model.onnx", "model.onnx.zst", "artifact/model.safetensors")}
    return kept, [stage["figures"][name] for name in EXACT], stage["history"], stage["key"]


def test_row_16_a_run_from_the_store_is_the_run_without_it(cheap_run, run_again):
    first, store = cheap_run
    second = run_again(store)
    assert (first.hits, second.hits) == ({"train": False}, {"train": True})
    assert results(second) == results(first)


@pytest.mark.long
def test_row_16_another_process_and_store_give_the_same(cheap_run, tmp_path):
    first, _ = cheap_run
    done = run_process(CHEAP, tmp_path, tmp_path / "other store", PYTHONHASHSEED="7")
    assert done.code == 0, done.err
    assert results(read_run(tmp_path)) == results(first)
