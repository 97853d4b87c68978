"""As the command line does: threads that wait do not spin. Read when torch is loaded."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(tryfirst=True)  # the plugin reads the marks in its own
def pytest_collection_modifyitems(items):
    """The end-to-end tests share the runs that they look at, so they stay in one process."""
    for item in items:
        if "end_to_end" in Path(item.path).parts:
            item.add_marker(pytest.mark.xdist_group("end_to_end"))
