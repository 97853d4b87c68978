"""Instantiates `_target_` configs: only allowed targets (see `boundary`), only known options."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from compressbench.config.boundary import ALLOW_VARIABLE, allowed, is_allowed, is_target
from compressbench.config.option_types import mistyped
from compressbench.core.errors import UserError
from compressbench.core.live_objects import live_types
from compressbench.core.nearest import nearest

# What an allowed function may return; as a target, `check` refuses it before Hydra sees it.
_MODULES = (
    "torch.nn.*",
    "torch._dynamo.eval_frame.OptimizedModule",
    "torch.jit._script.RecursiveScriptModule",
    "torch.jit._trace.TopLevelTracedModule",
)
_REFUSED = re.compile(r"Target '(.+?)' \(resolved from '(.+?)'\) is not in the Hydra")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_"}


def own_targets(tree: Any) -> Iterator[str]:
    """Every `_target_` in a config except those of torch, which counts by version."""
    if isinstance(tree, Mapping):
        target = tree.get("_target_")
        if target is not None and not str(target).startswith("torch."):
            yield str(target)
        for value in tree.values():
            yield from own_targets(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from own_targets(value)


def instantiate(config: Mapping[str, Any], where: str = "config", **keywords: Any) -> Any:
    """Call the `_target_` of `config` with its options and `keywords`, nested targets first.

    `where` is the config path for error messages. Raises UserError for a target that is not
    allowed or not there, an unknown or missing option, and a value that the target refuses.
    """
    from hydra import utils
    from hydra.errors import InstantiationException

    if "_target_" not in config:
        raise UserError(f"{where}._target_ is required: the class or function to call")
    check(config, where, set(keywords))
    try:
        made = utils.instantiate(
            dict(config),
            _convert_="all",
            _execution_whitelist_=[*allowed(), *live_types(), *_MODULES],
            **keywords,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except InstantiationException as error:
        _check_types(config, where)
        raise UserError(f"{where}: {_explained(error)}") from error
    except ValueError as error:
        _check_types(config, where)
        raise UserError(f"{where}: {str(error).partition(chr(10))[0]}") from error
    except Exception:
        _check_types(config, where)
        raise
    _check_types(config, where)  # last: the target's own message is more precise
    return made


def _explained(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    refused = _REFUSED.match(first)
    if refused is None:
        return first
    kind, target = refused.groups()
    return (
        f"{target} gives a {kind}, which is not allowed; pass "
        f"--allow={kind.rpartition('.')[0]}.*, too, or set {ALLOW_VARIABLE}"
    )


def check(config: Mapping[str, Any], where: str, given: Iterable[str] = ()) -> None:
    """Refuse targets outside the list (before importing them) and options they do not take."""
    target = config.get("_target_")
    if target is not None:
        _check_options(config, _locate(str(target), where), where, set(given))
    for place, nested in _nested(config, where):
        check(nested, place)


def options_of_target(config: Mapping[str, Any], where: str) -> tuple[dict[str, bool], bool]:
    """The options that the target of `config` names (name -> whether it is required), and whether
    it takes others, too.
    """
    parameters = inspect.signature(_locate(str(config["_target_"]), where)).parameters.values()
    named = {p.name: p.default is p.empty for p in parameters if p.kind in _NAMED}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _nested(config: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, config) of the configs directly inside another one, including those in lists."""
    for name, value in config.items():
        yield from _configs_in(value, f"{where}.{name}")


def _configs_in(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield where, value
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _configs_in(item, f"{where}[{position}]")


def _check_types(config: Mapping[str, Any], where: str) -> None:
    """Refuse options of another type than the target's signature names."""
    target = config.get("_target_")
    if target is not None:
        plain = {n: v for n, v in config.items() if not _is_config(v)}
        for problem in mistyped(_locate(str(target), where), plain):
            raise UserError(f"{where}.{problem}")
    for place, nested in _nested(config, where):
        _check_types(nested, place)


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _locate(target: str, where: str) -> Any:
    if not all(map(str.isidentifier, target.split("."))):
        raise UserError(f"{where}._target_={target} is not the name of a class or function")
    if not is_allowed(target):
        raise UserError(
            f"{where}._target_={target} is not allowed; to run code of your own, pass "
            f"--allow={target.rpartition('.')[0]}.* or set {ALLOW_VARIABLE}"
        )
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise
        raise UserError(f"{where}._target_={target}: no module {module}") from None
    if not callable(found) or inspect.ismodule(found):
        raise UserError(f"{where}._target_={target}: {module} has no class or function {name}")
    if not is_target(target, found):
        raise UserError(f"{where}._target_={target} is not made to be named in a config")
    return found


def _check_options(config: Mapping[str, Any], target: Any, where: str, given: set[str]) -> None:
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    options = {str(name) for name in config} - _HYDRA_KEYS
    unknown = sorted(options - set(parameters))
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: no such option{nearest(unknown[0], parameters)}")
    required = {n for n, p in parameters.items() if p.default is p.empty and p.kind not in (
        p.VAR_POSITIONAL, p.POSITIONAL_ONLY)}  # fmt: skip
    missing = sorted(required - options - given)
    if missing and not config.get("_partial_"):
        raise UserError(f"{where}.{missing[0]} is required by {config['_target_']}")
