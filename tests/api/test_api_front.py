"""`compressbench.front`: the rows and the picture of `compressbench front`."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

import compressbench
from compressbench.cli.front import main
from compressbench.core.errors import UserError
from compressbench.results.sweep_file import write_sweep
from tests.sample_sweep import make_sweep, make_trial


@pytest.fixture
def stored(working_folder):
    folder = working_folder / "multirun" / "digits"
    folder.mkdir(parents=True)
    write_sweep(make_sweep(name="digits"), folder)
    return folder


def test_the_rows_are_those_of_the_command_line(stored, tmp_path):
    main(["digits", "--json", str(tmp_path / "front.json")])
    wanted = json.loads((tmp_path / "front.json").read_text())["front"]
    for name in ("digits", stored, str(stored / "sweep.json")):
        rows = compressbench.front(name).to_dict("records")
        assert [row["trial"] for row in rows] == [row["trial"] for row in wanted]
        assert [row["val/accuracy"] for row in rows] == [row["val/accuracy"] for row in wanted]
    assert wanted


def test_without_pandas_the_rows_are_a_list(stored, monkeypatch):
    from compressbench.api import table

    monkeypatch.setattr(table, "find_spec", lambda name: None)
    rows = compressbench.front("digits")
    assert isinstance(rows, list) and rows[0]["sweep"] == "digits"


def test_the_picture_is_that_of_the_command_line(stored, tmp_path):
    main(["digits", "--png", str(tmp_path / "front.png")])
    picture = compressbench.front_picture("digits")
    assert picture._repr_png_() == picture.png
    drawn, wanted = (Image.open(f) for f in (io.BytesIO(picture.png), tmp_path / "front.png"))
    assert drawn.size == wanted.size
    assert np.array_equal(np.asarray(drawn), np.asarray(wanted))


def test_sweeps_that_are_not_there_or_have_nothing(stored, working_folder):
    with pytest.raises(UserError, match=r"digit: no such sweep, and no MLflow experiment"):
        compressbench.front("digit")
    empty = working_folder / "multirun" / "empty"
    empty.mkdir()
    failed = make_trial(0, 0.9, 1_000, state="failed")
    write_sweep(make_sweep(name="empty", trials=(failed,)), empty)
    with pytest.raises(UserError, match=r"empty: no complete, feasible trial yet"):
        compressbench.front("empty")
