"""What a stranger hands over: a command, and files beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUIET = ("trainer=debug", "trainer.threads=1", "tracking=none", "model=mlp")
PLANTED = 'import pathlib\npathlib.Path("{marker}").touch()\n\ndef touch(*a, **k):\n    return 1\n'


class Pickled:
    """Writes the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@dataclass(frozen=True)
class Payload:
    """A command, and the files that a stranger has put into the working folder.

    In both, `{marker}` and `{folder}` stand for the file to be left and for the working folder.
    """

    name: str
    arguments: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    binaries: Mapping[str, Callable[[Path], bytes]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def plant(self, folder: Path, marker: Path) -> list[str]:
        """Write the files; the arguments of the command."""

        def filled(text: str) -> str:
            return text.replace("{marker}", str(marker)).replace("{folder}", str(folder))

        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(filled(text))
        for name, content in self.binaries.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content(marker))
        return [filled(argument) for argument in self.arguments]
