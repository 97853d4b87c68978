"""As the command line does: threads that wait do not spin. Read when torch is loaded."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a script's background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """Setting one up takes seconds, copying it none."""
    from compressbench.tracking.mlflow_client import TrackingStore, client_of

    folder = tmp_path_factory.mktemp("mlflow")
    client_of(TrackingStore(f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlartifacts").as_uri()))
    return folder / "mlflow.db"


@pytest.fixture
def home(tmp_path, empty_database):
    """A folder with the database of a tracking server that has nothing yet."""
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def by_hand(monkeypatch):
    """No process drains a sweep's outbox: the test does, in its own."""
    from compressbench.tracking import sweep_session

    idle = lambda outbox, store: subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # noqa: E731
    monkeypatch.setattr(sweep_session, "_start_drain", idle)
    monkeypatch.setattr(sweep_session, "FRONT_SECONDS", 0.0)


@pytest.fixture
def allow(monkeypatch):
    """Allow configs to name what matches a pattern, in this test alone."""
    from compressbench.config.boundary import ALLOW_VARIABLE, freeze

    def allowed(pattern):
        monkeypatch.setenv(ALLOW_VARIABLE, pattern)
        freeze()

    yield allowed
    monkeypatch.undo()  # now, since the list is read again from what was there before
    freeze()


@pytest.fixture
def one_thread():
    """Tests that run side by side do not fight over the processor."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def refused(tmp_path):
    """Run a command that must be refused in one line, leaving nothing behind."""
    from tests.end_to_end.refusals import Refusing

    return Refusing(tmp_path)
