"""The studies of sweeps describe a sweep as the package does today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from compressbench.search.spec import load_spec

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def load(path):
    found = importlib.util.spec_from_file_location(path.replace("/", "_"), EXPERIMENTS / path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_their_specs_are_complete(tmp_path):
    overhead = load("sweep_overhead/measure.py").make_spec(tmp_path, 5)
    efficiency = load("search_efficiency/study.py").make_spec(
        "small_cnn", "tpe", 3, 5, str(tmp_path)
    )
    assert load_spec(overhead.dump()).space == overhead.space
    assert load_spec(efficiency.dump()).space == efficiency.space
    assert efficiency.name == "tpe-3"
