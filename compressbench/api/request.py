"""From the arguments of `compress` to the config of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compressbench.api.given_data import GivenData, given_data
from compressbench.api.given_model import GivenModel, given_model, source_text
from compressbench.config.boundary import allow_arguments, freeze
from compressbench.config.compose import compose_config
from compressbench.config.groups import config_folder, options
from compressbench.config.instantiate import instantiate
from compressbench.config.overrides import refuse
from compressbench.config.run_config import RunConfig
from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest
from compressbench.tasks.classification import CLASSIFICATION

_DATA_OPTIONS = ("validation_fraction", "test_fraction", "split_seed", "metric")
_ELSEWHERE = {
    "hydra": "the run folder is the argument `folder`",
    "plan": "a plan is for the command line",
    "search": "a sweep is started on the command line",
}


@dataclass(frozen=True)
class Request:
    """A resolved config, the objects that it names by digest, and the command that asks for it.

    `source` is the text of the classes of a module in hand, "" without one.
    """

    config: RunConfig
    live: Mapping[str, Any]
    command: list[str]
    source: str


def composed(
    model: nn.Module | str,
    data: Any,
    recipe: str,
    overrides: Mapping[str, Any],
    *,
    trained: bool,
    tracking: str | None,
    config_dir: str | Path | None,
    class_names: Sequence[str] | None,
    task: str,
) -> Request:
    """The request of a call of `compress`; its arguments are described there."""
    freeze()
    folders = [config_folder()]
    if config_dir is not None:
        folders.append(_existing_folder(config_dir))
    module = _module(model, trained)
    chosen = _dataset(data, folders)
    in_hand = None if chosen else _given(data, class_names, task, folders)
    if chosen and task != CLASSIFICATION.name:
        raise UserError(f"task={task!r} is for data in hand; a dataset has its own")
    _check_in_hand(module, in_hand, overrides, class_names)
    groups: dict[str, Any] = {**({} if module else {"model": model}), **chosen, "recipe": recipe}
    groups |= {} if tracking is None else {"tracking": tracking}
    options_of_data = {"dataset": "images"} if in_hand else {}
    arguments = [*_arguments(overrides), *_arguments(options_of_data | groups)]
    refuse(arguments)
    config = compose_config(arguments, folders)
    live: dict[str, Any] = {}
    if module is not None:
        config["model"] = dict(module.config)
        live |= module.live
    if in_hand is not None:
        options = {name: config["dataset"][name] for name in _DATA_OPTIONS}
        if task != CLASSIFICATION.name and "dataset.metric" not in overrides:
            del options["metric"]  # that of the task
        config["dataset"] = {**in_hand.config, **options}
        live |= in_hand.live
    _check_processes(config, bool(live))
    command = [*_arguments(overrides), *_arguments(groups)]
    own = [] if config_dir is None else [f"--config-dir={folders[1]}"]
    return Request(
        RunConfig.of(config),
        live,
        _shown_command([*allow_arguments(), *own, *command], module, in_hand),
        source_text(module.module) if module else "",
    )


def _given(
    data: Any, class_names: Sequence[str] | None, task: str, folders: Sequence[Path]
) -> GivenData:
    """Data in hand, for a task by its name in the config group."""
    if task == CLASSIFICATION.name:
        return given_data(data, class_names)
    known = options("task", folders)
    if task not in known:
        raise UserError(f"task={task!r}: no such task{nearest(str(task), known)}")
    config = compose_config([f"+task={task}"], folders)["task"]
    return given_data(data, class_names, instantiate(config, "task"), config)


def _module(model: nn.Module | str, trained: bool) -> GivenModel | None:
    if isinstance(model, nn.Module):
        return given_model(model, trained)
    if not isinstance(model, str):
        raise UserError(f"model must be a torch module or a name, got {type(model).__name__}")
    if trained:
        raise UserError(
            f"trained=True is for a module in hand; weights of model={model} come from a file: "
            "overrides={'model.checkpoint': FILE}"
        )
    return None


def _dataset(data: Any, folders: Sequence[Path]) -> dict[str, str]:
    """The options that name a dataset or a folder; none where the data are in hand."""
    if not isinstance(data, (str, Path)):
        return {}
    known = options("dataset", folders)
    if isinstance(data, str) and data in known:
        return {"dataset": data}
    if Path(data).expanduser().is_dir():
        return {"dataset.root": str(Path(data).expanduser().absolute()), "dataset": "images"}
    raise UserError(f"data={str(data)!r}: no such dataset or folder{nearest(str(data), known)}")


def _existing_folder(folder: str | Path) -> Path:
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"config_dir={folder}: there is no such folder")
    return path


def _check_in_hand(
    module: GivenModel | None,
    data: GivenData | None,
    overrides: Mapping[str, Any],
    class_names: Sequence[str] | None,
) -> None:
    """What cannot be asked for, together with what is in hand."""
    for key in overrides:
        name = key.lstrip("+~")
        group, _, option = name.partition(".")
        if group in _ELSEWHERE:
            raise UserError(f"overrides: {key}: {_ELSEWHERE[group]}")
        if module is not None and group == "model":
            raise UserError(f"overrides: {key}: the model is a module in hand, it has no options")
        if data is not None and group == "dataset" and option not in _DATA_OPTIONS:
            raise UserError(
                f"overrides: {key}: data in hand have the options {', '.join(_DATA_OPTIONS)}"
            )
    if data is None and class_names is not None:
        raise UserError("class_names is for data in hand; a dataset has its own")
    if module is not None and module.config["trained"] and data is not None and data.are_pixels:
        raise UserError(
            "data: uint8 images would be normalised anew, which a trained module does not expect: "
            "give float inputs as the module was trained on"
        )


def _check_processes(config: Mapping[str, Any], in_hand: bool) -> None:
    devices = config["trainer"].get("devices")
    if in_hand and isinstance(devices, int) and devices > 1:
        raise UserError(
            f"trainer.devices={devices}: other processes do not see a module or data in hand; use "
            "one device, or give names"
        )


def _shown_command(
    arguments: list[str], module: GivenModel | None, data: GivenData | None
) -> list[str]:
    """The command line that does the same; where there is none, something that reads like it."""
    if module is None and data is None:
        return ["python", "run.py", *arguments]
    held = [f"<{module.config['name']}>"] if module else []
    return ["compressbench.compress", *held, *(["<data in hand>"] if data else []), *arguments]


def _arguments(overrides: Mapping[str, Any]) -> list[str]:
    """`KEY=VALUE` as Hydra reads it back; `~KEY` for what is taken away."""
    return [k if k.startswith("~") and v is None else f"{k}={_shortest(v)}"
            for k, v in overrides.items()]  # fmt: skip


def _shortest(value: Any) -> str:
    """A text without quotes where Hydra reads it as the same text, else as `_text` has it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if isinstance(value, (str, Path)) and str(value):
        try:
            read = OverridesParser.create().parse_override(f"key={value}")
            if type(read.value()) is str and read.value() == str(value):
                return str(value)
        except HydraException:  # it needs quotes
            pass
    return _text(value)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (str, Path)):
        return _quoted(str(value))
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{k}:{_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_text, value))}]"
    if hasattr(value, "item"):  # of numpy or torch
        return _text(value.item())
    if isinstance(value, (int, float)):
        return repr(value)
    raise UserError(f"overrides: {value!r} is not a value of a config")


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()
