"""Runs of the zoo set their own store and permissions, which no other test must see."""

import pytest


@pytest.fixture(autouse=True)
def _environment(monkeypatch, one_thread):
    for name in ("COMPRESSBENCH_ALLOW", "COMPRESSBENCH_STORE"):
        monkeypatch.setenv(name, "")  # put back afterwards
