"""Overrides -> the resolved config of one trial, composed by Hydra outside of hydra.main."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressbench.errors import UserError
from compressbench.overrides import explain


def compose_config(overrides: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """The config as `python run.py OVERRIDES` would compose it, plain and resolved.

    `folders` are the config folders, ours first. Raises UserError in one line.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    more = [f"hydra.searchpath=[{','.join(f'file://{f}' for f in folders[1:])}]"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folders[0])):
            config = compose(
                "config", [*overrides, *(more if len(folders) > 1 else [])],
                return_hydra_config=True,
            )  # fmt: skip
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error, overrides, folders)) from error
    return dict(plain)


@functools.lru_cache(maxsize=256)
def cached_config(overrides: tuple[str, ...], folders: tuple[Path, ...]) -> dict[str, Any]:
    """The same for overrides that come again and again; not to be changed."""
    return compose_config(overrides, folders)
