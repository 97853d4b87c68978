"""Imports optional libraries, with a one-line error if they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from compressbench.core.errors import UserError


def extra(library: str, name: str) -> Any:
    """Import the module `library`, which the extra `name` of this package installs.

    Raises UserError if it is missing or cannot be loaded; a library built for another torch fails
    with a RuntimeError on import. The message refers to a checkout and not to the package index,
    where another project has the same name.
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
