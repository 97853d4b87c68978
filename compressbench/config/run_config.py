"""The typed config of one run: composed YAML is checked here, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest
from compressbench.core.validation import (
    check_flag,
    check_label,
    check_not_negative,
    check_seed,
    is_number,
)

SECTIONS = ("model", "dataset", "recipe", "trainer", "tracking")
OF_SWEEPS = "search"  # part of every composed config, ignored by a single run


@dataclass(frozen=True)
class RunConfig:
    """One run: the keys of conf/config.yaml, resolved to plain JSON.

    The sections are nested `_target_` configs, built where they are used; everything else has its
    final type.
    """

    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    recipe: Mapping[str, Any]
    trainer: Mapping[str, Any]
    tracking: Mapping[str, Any]
    seed: int
    plan: bool
    checkpoint_seconds: float
    opset: int
    name: str
    max_overlap: float = 0.01  # absent in a recipe.yaml of an older version

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Check a composed config. Raises UserError for a key that is missing, unknown or of a
        wrong type.
        """
        wanted = {field.name for field in fields(cls)}
        optional = {field.name for field in fields(cls) if field.default is not MISSING}
        given = set(config) - {OF_SWEEPS}
        for name in sorted((given ^ wanted) - (optional - given)):
            problem = "is required" if name in wanted else f"no such key{nearest(name, wanted)}"
            raise UserError(f"{name}: {problem}")
        for name in SECTIONS:
            if not isinstance(config[name], Mapping):
                raise UserError(f"{name} must be a section of options, got {config[name]!r}")
        for name in sorted(set(config["recipe"]) - {"stages"}):
            raise UserError(f"recipe.{name}: no such key; a recipe has stages")
        check_label("name", config["name"])
        check_seed("seed", config["seed"])
        check_flag("plan", config["plan"])
        check_not_negative("checkpoint_seconds", config["checkpoint_seconds"])
        overlap = config.get("max_overlap", 0.0)
        if not is_number(overlap) or not 0 <= overlap <= 1:
            raise UserError(f"max_overlap must be a number in [0, 1], got {overlap!r}")
        return cls(**{name: config[name] for name in given})

    @property
    def stages(self) -> Mapping[str, Any]:
        """The stages of the recipe by name, in order."""
        stages: Mapping[str, Any] = self.recipe.get("stages", {})
        return stages

    def as_dict(self) -> dict[str, Any]:
        """The config as plain JSON; the inverse of `of`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
