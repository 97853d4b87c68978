"""The same guarantees on PostgreSQL: a server on loopback, started here from Debian's packages."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from optuna.trial import TrialState

from compressbench.core.errors import UserError
from compressbench.search.result import Result
from compressbench.search.worker_loop import run_one, settle, work
from compressbench.store.processes import process_token
from tests.search.noop import answer, make_spec, make_storage

pytestmark = pytest.mark.long


def tools() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    which = shutil.which("initdb")
    return Path(which).parent if which else None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of an empty database."""
    pytest.importorskip("psycopg", reason="pip install -e '.[postgres]'")
    bin_ = tools()
    if bin_ is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    as_other = {}
    folder = tmp_path_factory.mktemp("pg")
    if os.geteuid() == 0:  # it refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        as_other = {"user": user.pw_uid, "group": user.pw_gid}
        folder = Path("/tmp") / f"compressbench-pg-{os.getpid()}"
        folder.mkdir()
        os.chown(folder, user.pw_uid, user.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    subprocess.run([bin_ / "initdb", "-D", data, "-A", "trust", "-U", "sweeper"], check=True,
                   capture_output=True, cwd="/", **as_other)  # fmt: skip
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = [bin_ / "pg_ctl", "-D", data]
    start = [*control, "-w", "-l", folder / "log", "-o", options, "start"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd="/", **as_other)
    try:
        yield f"postgresql://sweeper:secret@127.0.0.1:{port}/postgres"
    finally:
        stop = [*control, "-m", "immediate", "stop"]
        subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, cwd="/", **as_other)
        shutil.rmtree(folder, ignore_errors=True)


def test_four_connections_make_exactly_n_trials(server, tmp_path):
    spec = make_spec(tmp_path / "a", 24, storage=server, name="total")
    desks = [make_storage(spec, create=i == 0) for i in range(4)]
    threads = [threading.Thread(target=work, args=(d, spec, f"elsewhere-{i}-1", answer))
               for i, d in enumerate(desks)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = desks[0].trials()
    assert [t.number for t in trials] == list(range(24))
    assert {t.state for t in trials} == {TrialState.COMPLETE}


def test_making_the_same_sweep_at_once(server, tmp_path):
    spec = make_spec(tmp_path / "b", 2, storage=server, name="at once")
    made, threads = [], []
    for _ in range(3):
        threads.append(threading.Thread(target=lambda: made.append(make_storage(spec))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len({d.study._study_id for d in made}) == 1
    assert len(made) == 3


def test_leases_are_atomic_and_fenced(server, tmp_path):
    spec = make_spec(tmp_path / "c", 3, storage=server, name="fence", lease_seconds=0.6)
    storage, me = make_storage(spec), process_token()

    def paused(trial, lease):
        storage.leases.hold("trial/0", me)
        lease.lost.wait(1.0)  # a heartbeat prolongs it
        adopted = False
        while not adopted:  # a heartbeat may come in between
            storage.leases._change(
                "UPDATE compressbench_tasks SET expires = 0 WHERE study = :study"
            )
            found = storage.leases.loose("trial")
            adopted = bool(found) and storage.leases.adopt("trial/0", "other")
        assert found == [("trial/0", 0)]
        assert not storage.leases.adopt("trial/0", "another")
        return answer(trial, lease)

    run_one(storage, spec, me, storage.new_trial(3, me, ()), paused)
    assert storage.trials()[0].state is TrialState.RUNNING
    assert storage.leases.finish("trial/0", "other", Result("failed", reason="x").dump())
    settle(storage, spec, {})
    assert storage.trials()[0].state is TrialState.FAIL
    work(storage, spec, me, answer)
    assert [t.state.name for t in storage.trials()] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_server_that_is_not_there_is_one_line_without_the_password(server, tmp_path):
    url = server.rpartition(":")[0] + ":1/postgres"
    with pytest.raises(UserError) as caught:
        make_storage(make_spec(tmp_path / "d", storage=url))
    text = str(caught.value)
    assert text.startswith("search.storage=postgresql://***@127.0.0.1:1/postgres: ")
    assert "\n" not in text
    assert "secret" not in text
