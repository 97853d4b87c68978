"""Composes overrides into a resolved config with Hydra, outside of `hydra.main`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.config.boundary import each_choice
from compressbench.config.groups import config_folders
from compressbench.config.overrides import composed_by_hydra, explain, with_checkpoint_key
from compressbench.core.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose_config(overrides: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """The config as `python run.py OVERRIDES` would compose it, plain and resolved.

    `folders` are the config folders, ours first. What comes before the values at the end of
    `overrides` is composed once: most trials differ in values alone. Raises UserError in one line.
    """
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
    except composing_errors() as error:
        raise UserError(explain(error, overrides, folders)) from error


def composing_errors() -> tuple[type[Exception], ...]:
    """What Hydra raises for a config that cannot be composed."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    return HydraException, OmegaConfBaseException, ValueError, YAMLError, RecursionError


def check_folders(arguments: Sequence[str]) -> None:
    """Compose all configs that a command line asks for, to raise what is wrong with the files of
    the user's folders before Hydra acts on them.
    """
    from hydra._internal.utils import get_args_parser

    flags = get_args_parser().parse_intermixed_args(list(arguments))
    for name in ("config_path", "config_name", "experimental_rerun"):
        if getattr(flags, name) is not None:
            flag = name.replace("_", "-")
            raise UserError(
                f"--{flag}: conf/config.yaml is the config; --config-dir=DIR adds to it"
            )
    searched = [o for o in flags.overrides if o.lstrip("+").startswith("hydra.searchpath=")]
    if flags.config_dir is not None and searched:
        raise UserError(f"{searched[0]}: --config-dir={flags.config_dir} is given, too; choose one")
    if flags.config_dir is None and not searched:
        return
    folders = config_folders([f"--config-dir={flags.config_dir}"] if not searched else [])
    if all(folder.is_dir() for folder in folders):  # if not, Hydra says so
        for chosen in each_choice(flags.overrides, folders):
            composed_by_hydra(chosen, folders)


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
