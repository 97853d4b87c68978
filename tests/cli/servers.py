"""Servers on loopback that do not do what is asked of them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def refusing_server() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1]


@contextmanager
def silent_server() -> Iterator[int]:
    """It accepts, and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@contextmanager
def babbling_server() -> Iterator[int]:
    """It answers, but not in HTTP."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        threading.Thread(target=_babble, args=(server,), daemon=True).start()
        yield server.getsockname()[1]


def _babble(server: socket.socket) -> None:
    accepted, _ = server.accept()
    with accepted:
        accepted.recv(1000)
        accepted.sendall(b"220 mail.example ready\r\n\r\n")


class _Handler(BaseHTTPRequestHandler):
    """Answers as MLflow: no experiments, and `write_status` to whoever tags a run."""

    write_status = 0

    def do_GET(self) -> None:
        self._answer(200, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("set-tag"):
            return self._answer(200, {"experiments": []})
        codes = {403: "PERMISSION_DENIED", 404: "RESOURCE_DOES_NOT_EXIST"}
        text = {"error_code": codes[self.write_status], "message": "no"}
        return self._answer(self.write_status, text)

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def mlflow_server(write_status: int) -> Iterator[int]:
    """The port of a server that answers what MLflow would."""
    handler = type("Handler", (_Handler,), {"write_status": write_status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
