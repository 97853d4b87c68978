"""docs/notebook.ipynb works from top to bottom, in Jupyter's own runner."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from compressbench.results.sweep_file import write_sweep
from tests.end_to_end.running import ROOT
from tests.sample_sweep import make_sweep

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_it_has_no_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs")] == []


def test_its_code_runs(working_folder, capsys):
    """Without Jupyter; a hand-made sweep stands for the one of its command."""
    folder = working_folder / "sweeps" / "digits"
    folder.mkdir(parents=True)
    write_sweep(make_sweep(name="digits"), folder)
    program = types.ModuleType("__main__")
    for cell in code_cells():
        if not cell.startswith("!"):
            exec(cell, vars(program))
    assert "of the classifier is zero" in capsys.readouterr().out
    assert float(program.zeros) == pytest.approx(0.6, abs=0.05)
    figures = program.result.figures
    assert figures["test/accuracy"] > 0.9 and figures["size/onnx_bytes"] < 15_000
    assert program.agree > 0.98
    assert list(program.table["trial"]) == [0, 3, 4]


@pytest.mark.long
def test_jupyter_runs_it(working_folder, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    scripts = Path(sys.executable).parent  # of an environment that may not be activated
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(working_folder)}}
    nbclient.NotebookClient(notebook, timeout=240, resources=resources).execute()
    *_, table, picture = (c for c in notebook.cells if c.cell_type == "code")
    assert "val/accuracy" in table.outputs[-1]["data"]["text/html"]
    drawn = Image.open(io.BytesIO(base64.b64decode(picture.outputs[-1]["data"]["image/png"])))
    assert min(drawn.size) > 300 and len(drawn.convert("RGB").getcolors(maxcolors=10**6)) > 10
    (source,) = working_folder.glob("runs/*/*/artifact/model_source.py")
    assert source.read_text().startswith("# __main__.Net\nclass Net(nn.Module):")
