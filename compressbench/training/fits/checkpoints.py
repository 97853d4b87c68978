"""Saves and loads the state of a fit, from which an interrupted fit resumes.

Lightning stages its checkpoints in TMPDIR and moves them into place; a kill during that copy
destroys the previous checkpoint. Here, a new checkpoint replaces the previous one by a rename.
Each ends with its digest, and is loaded only as it was written, and only for its own stage.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from compressbench.core.atomic import atomic_path
from compressbench.core.checked_files import DamagedFileError, append_digest, read_checked, remove

State = dict[str, Any]
_log = logging.getLogger("compressbench.training")


def save_checkpoint(state: State, path: Path) -> None:
    """Write `state` atomically and keep the checkpoint before it as `.previous`."""
    previous = _previous(path)
    for old in (path, previous):
        if old.is_symlink() or (old.exists() and not old.is_file()):
            remove(old)
    with atomic_path(path, previous) as temporary:
        with temporary.open("wb") as file:
            torch.save(state, file)
        append_digest(temporary, _place(path))


def load_checkpoint(
    path: Path, fields: Set[str] = frozenset(), like: Mapping[str, Tensor] | None = None
) -> State | None:
    """The newest state that is as it was saved, or None; what is no such state is removed.

    Where they are given, the state must have exactly `fields`, and its `model` tensors with the
    names and shapes of `like`.
    """
    for candidate in (path, _previous(path)):
        try:
            state = _parsed(read_checked(candidate, _place(path)))
            _check(state, fields, like)
        except FileNotFoundError:
            continue
        except DamagedFileError as damage:
            then = "trying the one before" if candidate == path else "starting anew"
            _log.warning("checkpoint %s cannot be used (%s): %s", candidate, damage, then)
            remove(candidate)
        else:
            return state
    return None


def _parsed(content: memoryview) -> State:
    try:
        state = torch.load(BytesIO(content), weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise DamagedFileError("not a checkpoint") from error
    if not isinstance(state, dict):
        raise DamagedFileError("not a checkpoint")
    return state


def _check(state: State, fields: Set[str], like: Mapping[str, Tensor] | None) -> None:
    if fields and state.keys() != fields:
        raise DamagedFileError("it is of something else")
    if like is not None and _shapes(state["model"]) != _shapes(like):
        raise DamagedFileError("it is of another model")


def _shapes(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(tensor, "shape", None) for name, tensor in model.items()}


def _previous(path: Path) -> Path:
    return path.with_suffix(".previous")


def _place(path: Path) -> str:
    """The name under which a checkpoint is valid: its folder is named after the stage's key."""
    return "/".join(path.absolute().parts[-3:])
