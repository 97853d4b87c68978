"""What layers cost is measured once for all limits and budgets, and is in the store."""

from __future__ import annotations

import json

import pytest

from compressbench.analysis import weight_trials
from tests.end_to_end.running import QUIET, run_here

SHORT = ("recipe.stages.train.epochs=0.5", "recipe.stages.train.batch_size=256")
CASES = {
    "channels": (
        ["recipe=prune_channels", "recipe.stages.prune.scope=sensitivity",
         "recipe.stages.prune.sparsity=null", "recipe.stages.prune.round_to=4",
         "~recipe.stages.finetune"],
        ["recipe.stages.prune.macs=0.8", "recipe.stages.prune.macs=0.5"],
    ),
    "bits": (
        ["recipe=quantize_mixed"],
        ["recipe.stages.quantize.allocation.budget=0.8",
         "recipe.stages.quantize.allocation.budget=0.6"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_another_limit_measures_nothing_anew(case, tmp_path, monkeypatch):
    shared, limits = CASES[case]
    measured = []
    totals = weight_trials.totals
    monkeypatch.setattr(weight_trials, "totals", lambda *a: measured.append(1) or totals(*a))

    def run(limit: str, store: str) -> dict:
        folder = tmp_path / f"{store} {limit}"
        folder.mkdir()
        arguments = [*shared, *SHORT, *QUIET, limit]
        ended = run_here(arguments, folder, tmp_path / store)
        assert ended.code == 0, ended.err
        (report,) = folder.rglob("report.json")
        return json.loads(report.read_text())["stages"][-1]["figures"]

    first, second = (run(limit, "shared") for limit in limits)
    assert len(measured) == 1
    assert first["size/onnx_bytes"] > second["size/onnx_bytes"]
    alone = run(limits[1], "another")
    assert len(measured) == 2
    same = ("size/onnx_bytes", "size/nonzero", "val/accuracy", "compute/macs")
    assert {n: alone[n] for n in same} == {n: second[n] for n in same}
