"""One line of what `compressbench doctor` found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FINE, LOOK, BROKEN = "fine", "look", "broken"
MARKS = (FINE, LOOK, BROKEN)  # from best to worst


@dataclass(frozen=True)
class Finding:
    """What was found about `subject`; `fix` says what to do about it, unless it is fine.

    `settings` is what the config tells the other checks; it is not shown.
    """

    subject: str
    mark: str
    found: str
    fix: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
