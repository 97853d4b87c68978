"""A tracking server that answers badly delays nothing, and what it has not got is kept."""

from __future__ import annotations

import pytest

from compressbench.cli.sync import sync
from compressbench.tracking import guarded_client
from compressbench.tracking.mlflow_client import Connection, TrackingStore
from compressbench.tracking.run_drain import drain
from tests.faults import bad_servers
from tests.faults.bad_servers import answering, listening
from tests.faults.tracked_run import METRICS, append_run, local_store, metrics_in

PAGE = b"<html><body>Log in</body></html>"
ANSWERS = {
    "500": (answering("500 Oops", b"no"), "answers 500"),
    "502": (answering("502 Bad Gateway", PAGE), "answers 502"),
    "503, for an hour": (answering("503 Busy", b"", "Retry-After: 3600"), "answers 503"),
    "401": (answering("401 Unauthorized", b"who?"), "answers 401: name and password"),
    "403": (answering("403 Forbidden", PAGE), "answers 403: name and password"),
    "404": (answering("404 Not Found", PAGE), "answers 404"),
    "a page": (answering("200 OK", PAGE), "is not a server of MLflow"),
    "nothing": (answering("200 OK", b""), "is not a server of MLflow"),
    "an empty object": (answering("200 OK", b"{}"), "is not a server of MLflow"),
    "a list": (answering("200 OK", b"[]"), "is not a server of MLflow"),
    "another object": (answering("200 OK", b'{"experiment": 5}'), "is not a server of MLflow"),
    "a cut connection": (bad_servers.cutting, "is not a server of MLflow"),
    "a body a byte at a time": (bad_servers.dripping, "it does not answer in time"),
    "silence": (bad_servers.silent, "it does not answer in time"),
    "a body without end": (bad_servers.flooding, "is unreachable"),
}


@pytest.fixture
def hasty(monkeypatch):
    """Calls end after two seconds, and are not repeated."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(guarded_client, "_SECONDS", 2.0)


@pytest.mark.parametrize("kind", ANSWERS)
def test_row_09_a_bad_answer_is_named_and_nothing_is_lost(tmp_path, home, hasty, kind):
    handle, words = ANSWERS[kind]
    with listening(handle) as port:
        store = TrackingStore(f"http://127.0.0.1:{port}")
        outbox = append_run(tmp_path / "a", tmp_path, store)
        problem = drain(outbox, Connection(store), ended=True)
    assert words in problem
    assert "\n" not in problem
    assert outbox.state(store.shown)["problem"] == problem
    assert sync([str(outbox.folder), "--to", local_store(home).uri]) == 0
    assert metrics_in(home) == [tuple(m) for m in METRICS]


def test_row_09_a_redirect_to_another_host_is_not_followed(tmp_path, hasty):
    seen = []
    with listening(lambda connection: seen.append(connection.recv(65536))) as stranger:
        away = answering("302 Found", b"", f"Location: http://127.0.0.1:{stranger}/api")
        with listening(away) as port:
            store = TrackingStore(f"http://ann:s3cret@127.0.0.1:{port}")
            outbox = append_run(tmp_path / "a", tmp_path, store)
            problem = drain(outbox, Connection(store), ended=True)
    assert "answers 302, and redirects are not followed" in problem
    assert not seen
    assert "s3cret" not in problem


def test_row_09_tls_to_a_plain_server_is_named(tmp_path, hasty):
    with listening(answering("200 OK", b"{}")) as port:
        store = TrackingStore(f"https://127.0.0.1:{port}")
        outbox = append_run(tmp_path / "a", tmp_path, store)
        assert "TLS fails" in drain(outbox, Connection(store), ended=True)
