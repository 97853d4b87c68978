"""Servers that answer badly, and a proxy that loses answers, on sockets of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

Handler = Callable[[socket.socket], None]


@contextmanager
def listening(handle: Handler) -> Iterator[int]:
    """A server on the port that is yielded, with a thread for each connection."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def accept() -> None:
            with suppress(OSError):  # the server is closed
                while True:
                    threading.Thread(
                        target=_served, args=(handle, server.accept()[0]), daemon=True
                    ).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def _served(handle: Handler, connection: socket.socket) -> None:
    with closing(connection), suppress(OSError):
        handle(connection)


def answering(status: str, body: bytes, *headers: str) -> Handler:
    """Answers every request with the same."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    head = "".join(f"{line}\r\n" for line in (*lines, "")).encode()

    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head + body)

    return handle


def cutting(connection: socket.socket) -> None:
    """Closes the connection in the middle of the headers."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")


def silent(connection: socket.socket) -> None:
    """Accepts and never answers."""
    while connection.recv(65536):
        pass


def dripping(connection: socket.socket) -> None:
    """One byte every tenth of a second, without end."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.1)


def flooding(connection: socket.socket) -> None:
    """A body without end."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    while True:
        connection.sendall(chunk)


def losing_answers(port: int, lose: Callable[[bytes], bool], empty: bool = False) -> Handler:
    """A proxy of the server at `port`. If `lose(request)`, its answer is 502 though the server
    obeys; or, with `empty`, an empty success though the server was not asked.
    """

    def handle(connection: socket.socket) -> None:
        request = _request(connection)
        lost = lose(request)
        answer = b"" if lost and empty else _ask(port, request)
        if lost:
            status = b"200 OK" if empty else b"502 Bad Gateway"
            answer = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status
        connection.sendall(answer)

    return handle


def _ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as server:
        server.sendall(request.replace(b"Connection: keep-alive", b"Connection: close"))
        return b"".join(iter(lambda: server.recv(65536), b""))


def _request(connection: socket.socket) -> bytes:
    request = connection.recv(65536)
    while b"\r\n\r\n" not in request:
        request += connection.recv(65536)
    head, _, body = request.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    size = int(lengths[0].partition(b":")[2]) if lengths else 0
    while len(body) < size:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
