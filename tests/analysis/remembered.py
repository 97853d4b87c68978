"""A store of results in memory, for `Context.recall`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compressbench.core.journal import Journal


class Remembered(dict[str, Any]):
    """What was asked -> the result; its `recall` computes what was not asked before."""

    def recall(self, parts: Mapping[str, Any], compute: Callable[[Journal], Any]) -> Any:
        key = str(sorted(parts.items()))
        if key not in self:
            self[key] = compute(Journal())
        return self[key]
