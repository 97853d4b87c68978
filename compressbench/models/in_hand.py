"""Makes a module of a Python caller available as a model that a config can name."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from compressbench.core.errors import UserError
from compressbench.core.live_objects import live_object

TARGET = f"{__name__}.module_in_hand"


def module_in_hand(
    name: str, module_sha256: str, state_sha256: str, trained: bool = False, **of_the_data: Any
) -> nn.Module:
    """A copy of the module that was passed to `compressbench.compress` or `compressbench.load`.

    Raises UserError if no caller currently provides the module.

    Args:
        name: its class, for messages.
        module_sha256: digest of its code and structure.
        state_sha256: digest of its tensors; both digests are part of the content key.
        trained: True if training stages should keep the weights of the module.
        of_the_data: options of other models that depend on the data (`input_shape`, `num_classes`,
            ...); ignored, since the module is already built.
    """
    module = live_object(state_sha256)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{name} is a module that was passed from Python: pass it again, to "
            "compressbench.compress(model=...) or compressbench.load(folder, model=...)"
        )
    return deepcopy(module)
