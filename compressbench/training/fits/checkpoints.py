"""Saves and loads the state of a fit, from which an interrupted fit resumes.

Lightning stages its checkpoints in TMPDIR and moves them into place; a kill during that copy
destroys the previous checkpoint. Here, a new checkpoint replaces the previous one by a rename.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from compressbench.core.atomic import atomic_path


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` atomically and keep the checkpoint before it as `.previous`."""
    with (
        atomic_path(path, path.with_suffix(".previous")) as temporary,
        temporary.open("wb") as file,
    ):
        torch.save(state, file)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The newest readable state, or None."""
    for candidate in (path, path.with_suffix(".previous")):
        if candidate.exists():
            try:
                state: dict[str, Any] = torch.load(candidate, weights_only=True, map_location="cpu")
            except (RuntimeError, EOFError, OSError, UnpicklingError):
                continue
            return state
    return None
