"""What a result depends on is in its key: the CPU of a measurement, the code of a dataset."""

from __future__ import annotations

import importlib

import pytest

from compressbench.core.types import Runtime
from compressbench.engine import environment
from compressbench.engine.plan import make_plan
from tests.engine.test_environment import XEON
from tests.engine.test_plan import MODEL, STAGES

DATASET = """
from compressbench.data.digits import Digits
class Mine(Digits):
    def augment(self, inputs, generator):
        return inputs{change}
"""


def kinds(store):
    """How many entries of each kind a store has."""
    import json

    found = [json.loads(p.read_text())["parts"] for p in store.glob("entries/*/*/manifest.json")]
    names = [parts.get("kind", "stage") for parts in found]
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize("cpu", [XEON, XEON.replace("avx512_vnni ", "")])
def test_row_36_another_cpu_measures_again_and_trains_nothing(
    cheap_run, run_again, monkeypatch, cpu
):
    first, store = cheap_run
    before = kinds(store)
    monkeypatch.setattr(environment, "_cpuinfo", lambda: cpu)
    second = run_again(store)
    after = kinds(store)
    assert second.hits == {"train": True}
    assert {n: after[n] - before[n] for n in after if after[n] != before[n]} == {
        "measure": 1,
        "test": 1,
    }
    assert second.onnx == first.onnx


def test_row_31_datasets_that_differ_in_code_only_share_no_stage(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for change in ("", " + 1", " + 1  # the same again"):
        (tmp_path / "row_31_data.py").write_text(DATASET.format(change=change))
        importlib.invalidate_caches()
        module = importlib.reload(importlib.import_module("row_31_data"))
        dataset = {"_target_": "row_31_data.Mine"}
        made = make_plan(
            STAGES, model=MODEL, dataset=dataset, data=module.Mine(), runtime=Runtime(), seed=0
        )
        found.append([planned.key for planned in made])
    assert not set(found[0]) & set(found[1])
    assert not set(found[1]) & set(found[2]), "its bytes count"
