"""Reads the `recipe.yaml` of a run folder, with limits: it may come from a stranger."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from compressbench.config.boundary import allow_arguments
from compressbench.config.moved_targets import with_current_targets
from compressbench.core.errors import UserError
from compressbench.core.redact import HIDDEN

MAX_RECIPE_BYTES = 200_000  # YAML is parsed at about 100 kB/s
MAX_RECIPE_DEPTH = 40
_HIDDEN_PARTS = re.compile(rf"{re.escape(HIDDEN)}@|[?&][^?&=]*={re.escape(HIDDEN)}")
_OF_SERVER = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_OF_DATABASE = ("PGUSER", "PGPASSWORD")


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
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml is faster
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_bombs(yaml.parse(text, Loader=loader), path)
        config = yaml.load(text, Loader=loader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a recipe: expected a mapping")
    _refuse_interpolations(config, path)
    _without_hidden_(config, path)
    return dict(with_current_targets(config))


def _without_hidden_(config: dict[str, Any], path: Path) -> None:
    """Take `***` out of `tracking.url`, and say what to set instead; elsewhere, refuse it."""
    tracking = config.get("tracking")
    url = tracking.get("url") if isinstance(tracking, dict) else None
    if isinstance(tracking, dict) and isinstance(url, str) and HIDDEN in url:
        tracking["url"] = _HIDDEN_PARTS.sub("", url)
        names = _OF_DATABASE if url.startswith("postgresql") else _OF_SERVER
        if not any(os.environ.get(name) for name in names):
            print(
                f"{path}: the credentials of tracking.url={url} were not written down; set "
                f"{' and '.join(names[:2])}",
                file=sys.stderr,
            )
    for key, value in _texts(config):
        if value == HIDDEN:
            raise UserError(f"{path}: {key}={HIDDEN} was not written down; enter it there")


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
    for key, text in _texts(tree):
        for part in (key, text):
            if "${" in part:
                raise UserError(f"{path}: interpolations are not allowed in a recipe, got {part!r}")


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a tree; a key without one comes with ""."""
    if isinstance(tree, str):
        yield key, tree
    elif isinstance(tree, (dict, list)):
        for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            place = f"{key}.{name}" if key else str(name)
            yield place, ""
            yield from _texts(part, place)
