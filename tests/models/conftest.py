from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def alone(one_thread):
    """All tests of this folder."""
