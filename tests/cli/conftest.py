"""Settings that the checks of `compressbench doctor` get."""

from __future__ import annotations

import pytest

from tests.end_to_end.running import ROOT

LOCAL = "compressbench.tracking.trackers.Local"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Those of a run in `tmp_path`, with the store in its folder `store`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))
    return {
        "runs": "runs", "sweeps": "sweeps", "storage": None, "overrides": [],
        "folders": [str(ROOT / "conf")],
        "tracking": {"_target_": LOCAL, "folder": str(tmp_path)},
        "trainer": {"accelerator": "auto", "devices": 1, "precision": "32-true", "threads": None,
                    "max_batches": None},
    }  # fmt: skip
