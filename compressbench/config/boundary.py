"""The boundary: what a config may instantiate, read and set.

A config can come from a stranger, so a file decides nothing about this process or its children:

- It may instantiate the classes of this package that recipes are made of, torch's optimizers, and
  what the user adds by `--allow mymodule.*` or COMPRESSBENCH_ALLOW. The list is read once, before
  any config is.
- It may read environment variables (`${oc.env:NAME}`), but none whose name looks like a secret.
- It may set nothing of Hydra's own section `hydra`, which changes environment variables, working
  folder, logging, search path and the code that launches jobs. Only the command line may.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.config.groups import options
from compressbench.core.errors import UserError
from compressbench.core.redact import names_a_secret

if TYPE_CHECKING:
    from omegaconf import DictConfig

ALLOW_VARIABLE = "COMPRESSBENCH_ALLOW"
_PACKAGES = ("pruning", "quantization", "training", "analysis.sensitivity", "models", "data",
             "tasks", "tracking.trackers", "search.samplers")  # fmt: skip
_OURS = tuple(f"compressbench.{name}.*" for name in _PACKAGES)
_OPTIMIZERS = "torch.optim.*"
# Everything else that is instantiated is a class: a function may do anything with its arguments.
_FUNCTIONS = (
    "compressbench.search.samplers.*",
    "compressbench.models.in_hand.module_in_hand",
    "compressbench.models.pretrained.pretrained",
    "compressbench.data.array_file.array_file",
    "compressbench.data.descriptions.descriptions",
    "compressbench.data.diabetes.diabetes",
    "compressbench.data.digit_scenes.digit_masks",
    "compressbench.data.digit_scenes.digit_sets",
    "compressbench.data.in_hand.task_in_hand",
    "compressbench.data.pictures.pictures",
    "compressbench.data.vibrations.vibrations",
    "compressbench.models.lazy.initialised",
)
_NOT_COMPARED = ("overrides", "runtime", "searchpath")  # of `hydra`; the first is checked apart
_Key = tuple[str | int, ...]


def freeze() -> None:
    """Read what the user adds to the list. Each process does, before it reads a config."""
    _added.cache_clear()
    _added()


@functools.cache
def _added() -> tuple[str, ...]:
    return tuple(os.environ.get(ALLOW_VARIABLE, "").replace(",", " ").split())


def allowed() -> list[str]:
    """The patterns a `_target_` must match, in Hydra's execution_whitelist syntax."""
    return [*_OURS, _OPTIMIZERS, *_added()]


def allow_arguments() -> list[str]:
    """The `--allow` arguments that reproduce this run's permissions."""
    return [f"--allow={pattern}" for pattern in _added()]


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a Python process that we start: with the list of this one, and the working
    folder on Python's path only where the list has something of the user's.
    """
    root, given = Path(__file__).parents[2], os.environ.get("PYTHONPATH", "")
    places = [given] if given else []
    if "site-packages" not in root.parts:
        places.append(str(root))
    if _added():
        places.append(str(Path.cwd()))
    own = {ALLOW_VARIABLE: " ".join(_added()), "PYTHONSAFEPATH": "1"}
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join(places), **more}


def is_allowed(target: str) -> bool:
    return _matches(target, allowed())


def is_target(target: str, found: Any) -> bool:
    """Whether the object of an allowed name is one to be called from a config: of ours a public
    class or a sampler, of torch an optimizer, of the user's modules anything callable.
    """
    if not callable(found) or inspect.ismodule(found):
        return False
    if _matches(target, _added()):
        return True
    if target.startswith("torch."):
        from torch.optim import Optimizer

        return inspect.isclass(found) and issubclass(found, Optimizer)
    is_public = not any(part.startswith("_") for part in target.split("."))
    return is_public and (inspect.isclass(found) or _matches(target, _FUNCTIONS))


def _matches(target: str, patterns: Iterable[str]) -> bool:
    return any(
        target == pattern or (pattern.endswith(".*") and target.startswith(pattern[:-1]))
        for pattern in patterns
    )


def guard_environment() -> None:
    """Let `${oc.env:NAME}` refuse names that look like secrets, wherever it stands."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def read(key: str, *default: Any) -> Any:
        if names_a_secret(str(key)):
            raise UserError(
                f"${{oc.env:{key}}} looks like a secret, which no config may read; MLflow and "
                "PostgreSQL read MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN and PGPASSWORD "
                "themselves"
            )
        return oc.env(key, *default)

    OmegaConf.register_resolver("oc.env", read, replace=True)


def check_section(config: DictConfig, overrides: Sequence[str], ours: Path) -> None:
    """Raise UserError if a file of the user's folders has a part in the section `hydra`.

    `config` is composed from `overrides`; without these folders, the section must be the same.
    """
    lines = _parsed(overrides)
    of_hydra = [line for line, key in lines if key.partition("@")[0] == "hydra" or _is_hydra(key)]
    known = dict(_leaves(_own_section(tuple(of_hydra), ours)))
    found = dict(_leaves(_section(config)))
    changed = [key for key in (*found, *known) if found.get(key) != known.get(key)]
    given, taken = sorted(line for line, _ in lines), config.hydra.overrides
    if not changed and sorted([*taken.hydra, *taken.task]) != given:
        changed = [("overrides",)]
    if changed:
        raise UserError(
            f"{'.'.join(map(str, ('hydra', *changed[0])))} is set by a file of --config-dir: the "
            "section hydra changes the process, so only the command line may set it"
        )


def _is_hydra(key: str) -> bool:
    return key.startswith(("hydra.", "hydra/")) and key != "hydra.searchpath"


def _parsed(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """(line, key with package) of overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [(str(o.input_line), o.get_key_element().lstrip("+~")) for o in parsed]


@functools.lru_cache(maxsize=64)
def _own_section(overrides: tuple[str, ...], folder: Path) -> Any:
    """The section `hydra` without any folder of the user's."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder)):
        return _section(compose("config", list(overrides), return_hydra_config=True))


def _section(config: DictConfig) -> Any:
    """The section `hydra` as it is written, interpolations included."""
    from omegaconf import OmegaConf

    section: Any = OmegaConf.to_container(config.hydra, resolve=False)
    return {name: value for name, value in section.items() if name not in _NOT_COMPARED}


def _leaves(tree: Any, place: _Key = ()) -> Iterator[tuple[_Key, Any]]:
    """(key, value) of each value in a tree; an empty branch is a value, too."""
    if tree and isinstance(tree, (Mapping, list)):
        for name, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(part, (*place, name))
    else:
        yield place, tree


def each_choice(overrides: Sequence[str], folders: Iterable[Path]) -> Iterator[list[str]]:
    """`overrides` once for each combination of the groups that they sweep over.

    Values that are swept are left out: they decide nothing about which files are read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob

    places, alternatives = list(folders), []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        line, group = str(override.input_line), re.sub(r"^[+~]+", "", str(override.key_or_group))
        if not override.is_sweep_override():
            alternatives.append([line])
        elif override.is_discrete_sweep() and any((place / group).is_dir() for place in places):
            key, value = line.partition("=")[0], override.value()
            names: Iterable[str] = (
                value.filter(list(options(group, places)))
                if isinstance(value, Glob)
                else override.sweep_string_iterator()
            )
            alternatives.append([f"{key}={name}" for name in names])
    for chosen in itertools.product(*alternatives):
        yield list(chosen)
