"""A sum of distillation losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressbench.core.errors import UserError


@dataclass(frozen=True)
class Mixed:
    """Sum of the distillation losses `terms`, given by name.

    Losses on features are multiplied by their `weight`; losses on logits are added unchanged. If
    there is no loss on logits, the cross-entropy with the labels is added.
    """

    terms: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.terms, Mapping) or not self.terms:
            raise UserError(f"terms must name at least one loss, got {self.terms!r}")
        for name, term in self.terms.items():
            if not callable(term) or hasattr(term, "terms"):
                raise UserError(f"terms.{name} must be a distillation loss, got {term!r}")
