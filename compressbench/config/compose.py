"""Composes overrides into a resolved config with Hydra, outside of `hydra.main`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.config.overrides import composed_by_hydra, explain, with_checkpoint_key
from compressbench.core.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose_config(overrides: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """The config as `python run.py OVERRIDES` would compose it, plain and resolved.

    `folders` are the config folders, ours first. What comes before the values at the end of
    `overrides` is composed once: most trials differ in values alone. Raises UserError in one line.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    overrides = with_checkpoint_key(overrides)
    values = _values_at_the_end(overrides)
    before = tuple(overrides[: len(overrides) - len(values)])
    try:
        if values and not _names_overrides(before, tuple(folders)):
            try:
                return _plain(_with_values(_composed(before, tuple(folders)), values))
            except OmegaConfBaseException:
                pass  # let Hydra compose it all: its message is clearer
        return _plain(composed_by_hydra(overrides, folders, own_section=True))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error, overrides, folders)) from error


@functools.lru_cache(maxsize=256)
def cached_config(overrides: tuple[str, ...], folders: tuple[Path, ...]) -> dict[str, Any]:
    """`compose_config`, cached. The result must not be modified."""
    return compose_config(overrides, folders)


@functools.lru_cache(maxsize=64)
def _composed(overrides: tuple[str, ...], folders: tuple[Path, ...]) -> DictConfig:
    return composed_by_hydra(overrides, folders, own_section=True)


@functools.lru_cache(maxsize=64)
def _names_overrides(overrides: tuple[str, ...], folders: tuple[Path, ...]) -> bool:
    """Whether a config interpolates its own command line, so that values cannot be added later."""
    from omegaconf import OmegaConf

    sections = {k: v for k, v in _composed(overrides, folders).items_ex(False) if k != "hydra"}
    text = OmegaConf.to_yaml(OmegaConf.create(sections))
    return "hydra:job" in text or "hydra:overrides" in text


def _values_at_the_end(overrides: Sequence[str]) -> list[str]:
    """The last overrides that only set a value below a section: `section.key=value`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found: list[str] = []
    for text in reversed(overrides):
        key = text.partition("=")[0]
        if "." not in key or key.startswith(("hydra.", "+", "~")) or "@" in key:
            break
        if OverridesParser.create().parse_override(text).is_sweep_override():
            break
        found.insert(0, text)
    return found


def _with_values(config: DictConfig, values: Sequence[str]) -> DictConfig:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    changed = copy.deepcopy(config)
    for override in OverridesParser.create().parse_overrides(list(values)):
        OmegaConf.update(changed, override.key_or_group, override.value(), merge=True)
    return changed


def _plain(config: DictConfig) -> dict[str, Any]:
    """Without Hydra's own section, which may be interpolated from while it is resolved."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    HydraConfig.instance().set_config(config)
    sections = copy.copy(config)
    with open_dict(sections):
        del sections["hydra"]
    plain: Any = OmegaConf.to_container(sections, resolve=True, throw_on_missing=True)
    return dict(plain)
