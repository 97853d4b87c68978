"""As the command line does: threads that wait do not spin. Read when torch is loaded."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(tryfirst=True)  # the plugin reads the marks in its own
def pytest_collection_modifyitems(items):
    """End-to-end tests share the runs that they look at: the files that look at runs on the digits
    stay in one process, each other file in one of its own choice.
    """
    ends = [item for item in items if "end_to_end" in Path(item.path).parts]
    digits = {item.path for item in ends if "digits_store" in item.fixturenames}
    for item in ends:
        group = "digits" if item.path in digits else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
