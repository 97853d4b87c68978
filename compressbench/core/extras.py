"""Libraries that only an extra installs: imported where used, or refused in one line."""

from __future__ import annotations

import importlib
from typing import Any

from compressbench.core.errors import UserError


def extra(library: str, name: str) -> Any:
    """The module `library`, which the extra `name` of this package installs.

    Raises UserError where it is missing or cannot be loaded: a library built for another torch
    fails with a RuntimeError when it is imported. The advice names a checkout rather than the
    package index, where another project has our name.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        if error.name == library:
            advice = f"pip install -e '.[{name}]' in the checkout of compressbench"
            raise UserError(f"{library} is not installed: {advice}") from None
        reason = str(error)
    except RuntimeError as error:
        reason = str(error)
    raise UserError(f"{library} cannot be imported: {reason.partition(chr(10))[0]}")
