"""Runs of the zoo set their own store and permissions, which no other test must see."""

import pytest

from compressbench.config.boundary import freeze


@pytest.fixture(autouse=True)
def _environment(monkeypatch, one_thread):
    for name in ("COMPRESSBENCH_ALLOW", "COMPRESSBENCH_STORE"):
        monkeypatch.setenv(name, "")  # put back afterwards
    yield
    monkeypatch.undo()
    freeze()
