"""The state of a fit on disk, so that a stopped one goes on where it was.

Lightning's own checkpoints are staged in TMPDIR and moved: a kill in the copy destroys the last
one. These replace it in one rename.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from compressbench.core.atomic import atomic_path


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write so that a kill or a full disk cannot destroy the last one, kept as `.previous`."""
    with (
        atomic_path(path, path.with_suffix(".previous")) as temporary,
        temporary.open("wb") as file,
    ):
        torch.save(state, file)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The newest state that can be read, if any."""
    for candidate in (path, path.with_suffix(".previous")):
        if candidate.exists():
            try:
                state: dict[str, Any] = torch.load(candidate, weights_only=True, map_location="cpu")
            except (RuntimeError, EOFError, OSError, UnpicklingError):
                continue
            return state
    return None
