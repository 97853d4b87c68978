"""Libraries of extras: a missing one and a broken one cost one line that names the remedy."""

from __future__ import annotations

import json

import pytest

from compressbench.core.errors import UserError
from compressbench.core.extras import extra


def test_one_that_is_installed_is_handed_over():
    assert extra("json", "any") is json


def test_a_missing_one_names_the_extra():
    with pytest.raises(UserError, match=r"^nolib is not installed: pip install -e '\.\[name\]' in"):
        extra("nolib", "name")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('operator x does not exist\\nmore')", "operator x does not exist"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
    ],
)
def test_a_broken_one_says_why(tmp_path, monkeypatch, code, reason):
    (tmp_path / "brokenlib.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"^brokenlib cannot be imported: {reason}$"):
        extra("brokenlib", "name")
