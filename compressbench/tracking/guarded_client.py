"""A client of MLflow whose calls end in time, and whose texts are without credentials."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressbench.core.redact import redact
from compressbench.tracking.limits import limited

_SECONDS = 60.0  # of a call, its repetitions included
_BYTES_PER_SECOND = 50_000  # what a slow network carries
_TEXTS = {".yaml", ".json", ".html", ".csv", ".md", ".py", ".txt"}


class GuardedClient:
    """Passes calls on to an MlflowClient; a call that takes too long raises TimeoutError.

    `notice` says what became of a database that had to be replaced, or is "".
    """

    def __init__(self, client: Any, notice: str = "") -> None:
        self._client, self.notice = client, notice

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        def guarded(*positional: Any, **named: Any) -> Any:
            with limited(_SECONDS):
                return call(*redact(positional), **redact(named))

        return guarded

    def log_artifact(self, run: str, path: Path, parent: str | None = None) -> None:
        """Upload a file; what a text says of credentials is replaced."""
        seconds = _SECONDS + path.stat().st_size / _BYTES_PER_SECOND
        with tempfile.TemporaryDirectory() as folder, limited(seconds):
            self._client.log_artifact(run, str(_clean(path, Path(folder))), parent)


def _clean(path: Path, folder: Path) -> Path:
    """`path`, or, if its text has credentials, a copy in `folder` without them."""
    if path.suffix not in _TEXTS:
        return path
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    clean = str(redact(text))
    if clean == text:
        return path
    copy = folder / path.name
    copy.write_text(clean, encoding="utf-8", errors="surrogateescape")
    return copy
