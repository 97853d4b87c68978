"""A module that a Python caller holds, as a model that a config can name."""

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
    """A copy of the module that was given to `compressbench.compress` or `compressbench.load`.

    `name` is its class, `module_sha256` the digest of its code and structure, `state_sha256` that
    of its tensors; with them, another module has another content key. `trained` modules keep their
    weights where others are trained. What the data ask for (`input_shape`, `num_classes`, ...) the
    module has already. Raises UserError where no caller holds such a module.
    """
    module = live_object(state_sha256)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{name} is a module that was given from Python: give it again, to "
            "compressbench.compress(model=...) or compressbench.load(folder, model=...)"
        )
    return deepcopy(module)
