"""Reads the `recipe.yaml` of a run folder, with limits: it may come from a stranger."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compressbench.config.instantiate import allow_arguments
from compressbench.config.moved_targets import with_current_targets
from compressbench.core.errors import UserError

MAX_RECIPE_BYTES = 200_000  # YAML is parsed at about 100 kB/s
MAX_RECIPE_DEPTH = 40


def replay_command(recipe: Path) -> str:
    """The command that runs a recipe file again, with the permissions of this run."""
    return shlex.join(["compressbench", *allow_arguments(), "replay", str(recipe)])


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a resolved config. Raises UserError for anything but plain YAML below the limits."""
    import yaml

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise UserError(f"{path}: larger than {MAX_RECIPE_BYTES:,} bytes, so not a recipe of ours")
    text = path.read_text(encoding="utf-8")
    try:
        _refuse_bombs(yaml.parse(text), path)
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a recipe: expected a mapping")
    _refuse_interpolations(config, path)
    return dict(with_current_targets(config))


def _refuse_bombs(events: Iterable[Any], path: Path) -> None:
    """Aliases grow exponentially, the parser's time with the square of the depth."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{path}: YAML aliases are not allowed in a recipe")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_RECIPE_DEPTH:
            raise UserError(f"{path}: nested deeper than {MAX_RECIPE_DEPTH} levels")


def _refuse_interpolations(tree: Any, path: Path) -> None:
    """A recipe of ours is resolved; `${oc.env:NAME}` in a stranger's would read our environment."""
    if isinstance(tree, str) and "${" in tree:
        raise UserError(f"{path}: interpolations are not allowed in a recipe, got {tree!r}")
    if isinstance(tree, (dict, list)):
        for part in (*tree, *tree.values()) if isinstance(tree, dict) else tree:
            _refuse_interpolations(part, path)
