"""A worker that is paused past its lease: another takes over, and its late result is refused."""

from __future__ import annotations

import signal
import time

from optuna.trial import TrialState

from compressbench.search.result import load
from compressbench.search.worker_loop import work
from tests.search.noop import answer, make_spec, make_storage
from tests.search.test_leases import start


def test_row_06_a_worker_that_was_paused_past_its_lease_is_fenced(tmp_path):
    """SIGSTOP past the lease: another adopts; woken up, it is refused and takes the next."""
    spec = make_spec(tmp_path / "sweep", 2, lease_seconds=0.6)
    storage = make_storage(spec)
    sleeper = start(spec, 1.0)
    assert sleeper.stdout.readline().strip() == "ready"
    deadline = time.monotonic() + 20
    while not storage.leases.states("trial") and time.monotonic() < deadline:
        time.sleep(0.02)
    sleeper.send_signal(signal.SIGSTOP)
    work(storage, spec, "w", answer)
    assert storage.leases.owner("trial/0") == "w"
    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.wait(20) == 0
    results = {n: load(t) for n, t in storage.leases.results("trial").items()}
    assert results["trial/0"].folder == "", "the answer of the one who adopted stands"
    assert len(storage.trials(TrialState.COMPLETE)) == 2
    assert not list(spec.home.glob("running/0-*"))
