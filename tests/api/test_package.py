"""`import compressbench`: quick, without torch, and no part of any stage's content key."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import compressbench
from compressbench.store import sources

NAMES = {"compress", "load", "front", "front_picture", "Result", "Run", "FrontPicture",
         "UserError", "CheckFailedError"}  # fmt: skip


def test_the_names_are_found_when_they_are_asked_for():
    assert set(compressbench.__all__) == NAMES <= set(dir(compressbench))
    for name in NAMES:
        assert getattr(compressbench, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'press'"):
        compressbench.press  # noqa: B018


def test_the_stub_has_the_same_names():
    stub = ast.parse(Path(compressbench.__file__).with_suffix(".pyi").read_text())
    imported = [n for n in stub.body if isinstance(n, ast.ImportFrom)]
    where = {alias.asname: node.module for node in imported for alias in node.names}
    assert where == {k: f"compressbench.{v}" for k, v in compressbench._WHERE.items()}


def test_importing_it_is_quick_and_loads_no_library():
    code = (
        "import sys, time; t = time.perf_counter(); import compressbench; "
        "compressbench.__version__; dir(compressbench); print(time.perf_counter() - t); "
        "print([m for m in ('torch', 'numpy', 'hydra', 'pandas') if m in sys.modules])"
    )
    done = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    lines = [run.stdout.split("\n") for run in done]
    assert min(float(seconds) for seconds, *_ in lines) < 0.05
    assert lines[0][1] == "[]"


@pytest.mark.parametrize(
    "target",
    ["compressbench.training.train.Train", "compressbench.models.small_cnn.SmallCnn",
     "compressbench.quantization.quantize.Quantize", "compressbench.data.in_hand.DataInHand"],
)  # fmt: skip
def test_no_key_depends_on_it(target):
    finder = sources._Finder()
    closure = sources._follow(finder.modules(target), finder)
    assert "compressbench" in closure
    above = [n for n in closure if n.split(".")[1:2] in (["api"], ["engine"], ["cli"])]
    assert above == []
