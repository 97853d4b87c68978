"""One-line errors for command-line mistakes that Hydra accepts silently or explains poorly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.config.boundary import check_section, guard_environment
from compressbench.config.groups import options
from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = ("doctor", "explain", "front", "replay", "store", "sync")
_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c",
               "--package", "-p", "--info", "-i", "--experimental-rerun")  # fmt: skip
_DEEPEST = 40  # brackets within each other in a value
_STAGE = re.compile(r"~recipe\.stages\.[\w-]+")


def refuse(arguments: Sequence[str]) -> None:
    """Raise UserError for a key given twice, for anything but a stage taken away, and for a word
    that is neither a setting nor the value of a flag.
    """
    _refuse_word(arguments)
    seen: dict[str, str] = {}
    gone = [a[1:] for a in arguments if a.startswith("~")]
    for argument in arguments:
        if argument.startswith("~") and not _STAGE.fullmatch(argument):
            raise UserError(
                f"{argument}: only stages can be taken away (~recipe.stages.NAME); "
                "choose another option"
            )
        _refuse_depth(argument)
        key, equals, _ = argument.partition("=")
        if argument.startswith("-") or not (equals or argument.startswith("~")):
            continue
        name = key.lstrip("+~")
        if name.startswith("hydra") and "_target_" in argument:
            raise UserError(
                f"{argument}: choose what is installed by its name: hydra/launcher=NAME"
            )
        for stage in gone:
            if name.startswith(f"{stage}.") or f"@{stage}." in name:
                raise UserError(f"{argument}: ~{stage} takes that stage away")
        if name in seen:
            raise UserError(f"{name} is given twice: {seen[name]} and {argument}")
        seen[name] = argument


def _refuse_depth(argument: str) -> None:
    """Raise UserError for brackets that would exhaust the stack of Hydra's parser."""
    depth = 0
    for character in argument:
        depth += (character in "[{(") - (character in ")}]")
        if depth > _DEEPEST:
            shown = argument.partition("=")[0]
            raise UserError(f"{shown}: nested deeper than {_DEEPEST} levels")


def _refuse_word(arguments: Sequence[str]) -> None:
    """Raise UserError for the first word that is not NAME=VALUE, ~NAME, a flag or its value."""
    flag = ""  # before the word, if it takes a value
    setting = False  # whether one comes before the word
    for word in arguments:
        if "=" not in word and not word.startswith(("-", "~")) and not flag:
            if word in COMMANDS:
                raise UserError(f"the command {word!r} must come first: compressbench {word} ...")
            if setting:
                raise UserError(
                    f"{word!r} is not a setting NAME=VALUE; a value with spaces needs quotes"
                )
            raise UserError(f"unknown command {word!r}{_nearest_command(word)}")
        flag = word if word in _WITH_VALUE else ""
        setting = setting or "=" in word or word.startswith("~")


def _nearest_command(word: str) -> str:
    known = (*COMMANDS, "--help", "--version")
    close = get_close_matches(word.lower(), [name.strip("-") for name in known], n=1)
    if not close:
        return f"; choose from {', '.join(known)}, or give a setting as NAME=VALUE"
    return f"; did you mean {next(name for name in known if name.endswith(close[0]))!r}?"


def with_checkpoint_key(arguments: Sequence[str]) -> list[str]:
    """Let `model.checkpoint=FILE` add its key to a YAML of a model that does not have it; likewise
    for the model of a stage, where one is chosen on the command line.
    """
    models = [a.partition("=")[0].partition("@")[2] for a in arguments if a.startswith("model@")]
    keys = [f"{model}.checkpoint=" for model in ("model", *filter(None, models))]
    return [f"++{a}" if a.startswith(tuple(keys)) else a for a in arguments]


def is_interval(argument: str) -> bool:
    """Whether an override has values that can be sampled but not enumerated."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if "interval" not in argument:
        return False
    try:
        return bool(OverridesParser.create().parse_override(argument).is_interval_sweep())
    except HydraException:
        return False


def explain(error: Exception, arguments: Sequence[str], folders: Sequence[Path]) -> str:
    """Turn an error of Hydra or OmegaConf while composing into one line."""
    text = str(error)
    group = re.search(r"Could not find '([\w/]+)/([^'/]+)'", text)
    if group:
        name, option = group.groups()
        if name.startswith("hydra/") and option in options(name, folders[1:]):
            return f"{name}={option}: what is installed can be chosen, not a file of --config-dir"
        return f"{name}={option}: no such option{nearest(option, options(name, folders))}"
    key = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text)
    if key:
        return _unknown_key(key.group(1), arguments, folders)
    if isinstance(error, RecursionError):
        return "the config is nested too deeply"
    cause = error.__cause__
    lines = [line.strip() for line in (text or repr(error)).splitlines() if line.strip()]
    if cause is not None and str(cause) not in text:
        lines.append(str(cause).splitlines()[0])
    return " ".join(lines[:3])


def _unknown_key(key: str, arguments: Sequence[str], folders: Sequence[Path]) -> str:
    """Suggest a key for an unknown one, from the config composed without it."""
    from omegaconf import OmegaConf

    rest = [a for a in arguments if "=" in a and not a.startswith("-")]
    rest = [a for a in rest if a.partition("=")[0].lstrip("+") != key and "," not in a]
    config = composed_by_hydra(rest, folders)
    known = set(_keys(OmegaConf.to_container(config, resolve=False)))
    if key in known:  # a key inside its value is new
        return f"{key}: only keys that it has can be set; +{key}.NAME=VALUE adds one"
    return f"{key}: no such key{nearest_key(key, known)}"


def composed_by_hydra(
    overrides: Sequence[str], folders: Sequence[Path], own_section: bool = False
) -> DictConfig:
    """The config of `overrides` as Hydra composes it, `own_section` with the section `hydra`.

    Raises UserError where a file of the user's folders does what it must not (see `boundary`).
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    guard_environment()
    paths = [_quoted(f"file://{folder}") for folder in folders[1:]]
    given = [*overrides, *([f"hydra.searchpath=[{','.join(paths)}]"] if paths else [])]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folders[0])):
        config = compose("config", given, return_hydra_config=True)
    if any("hydra.searchpath" in override for override in given):
        check_section(config, given, folders[0])
    if not own_section:
        with open_dict(config):
            del config["hydra"]
    return config


def _quoted(text: str) -> str:
    """Text in the grammar of overrides."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def nearest_key(key: str, known: set[str]) -> str:
    """The nearest key under the same parent, or else of all keys."""
    parent = key.rpartition(".")[0]
    siblings = {k for k in known if k.rpartition(".")[0] == parent}
    return nearest(key, siblings or known)


def _keys(tree: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")
