"""A command that must be refused before anything is done."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.running import QUIET, files_in, run_here


class Refusing:
    """Runs commands that must be refused in one line, leaving nothing behind."""

    def __init__(self, home: Path) -> None:
        self.folder, self.store = home / "work", home / "store"
        self.folder.mkdir()

    def __call__(self, *arguments: str, code: int = 1, **more: str) -> str:
        before = files_in(self.folder)
        done = run_here(arguments, self.folder, self.store, **more)
        assert done.code == code, done.err
        assert "Traceback" not in done.err
        assert files_in(self.folder) == before
        assert not (self.folder / "runs").exists()
        assert not self.store.exists()
        return done.line


def quiet(arguments: list[str]) -> list[str]:
    """Add what keeps a run small, unless the arguments say otherwise or are no overrides."""
    given = {argument.partition("=")[0].lstrip("+~") for argument in arguments}
    return [*arguments, *(q for q in QUIET if q.partition("=")[0] not in given)]
