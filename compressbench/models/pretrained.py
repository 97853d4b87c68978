"""Models whose class or function brings trained weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from compressbench.core.digests import digest, named
from compressbench.core.errors import CheckFailedError, UserError

TARGET = f"{__name__}.pretrained"


def pretrained(
    model: nn.Module, state_sha256: str | None = None, trained: bool = True, **of_the_data: Any
) -> nn.Module:
    """`model` with the weights that it was built with, which stages that train from nothing keep.

    Args:
        model: the config of a class or function that loads its weights, from a package or a file.
        state_sha256: digest of the weights, which the plan finds: part of the content key.
        trained: False takes the architecture and trains it anew.
        of_the_data: options of other models that depend on the data; ignored.

    Raises CheckFailedError if the weights are no longer those of the plan.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model.model must be the config of a module, got {model!r}")
    if state_sha256 is not None and state_sha256 != weights_digest(model):
        raise CheckFailedError(
            "the weights that model.model brings are others than when the recipe was planned: it "
            "must load the same ones each time"
        )
    return model


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of the state."""
    return digest(named(model.state_dict()))
