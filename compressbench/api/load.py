"""`compressbench.load`: a finished run, read from its folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from compressbench.api.given_model import GivenModel, given_model
from compressbench.api.run_folder import ARTIFACT, MODEL, finished_report
from compressbench.config.moved_targets import with_current_targets
from compressbench.core import artifact as artifacts
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.live_objects import live_objects
from compressbench.engine.stage_job import build_model
from compressbench.models.in_hand import TARGET
from compressbench.results.run_report import Report, headline


@dataclass(frozen=True)
class Run:
    """A run that was read from its folder. `report` is the content of `report.json`."""

    folder: Path
    report: Report = field(repr=False)
    given: GivenModel | None = field(default=None, repr=False)

    @property
    def path(self) -> Path:
        """The file to ship, `model.onnx`."""
        return self.folder / MODEL

    @cached_property
    def session(self) -> Any:
        """`model.onnx` as an `onnxruntime.InferenceSession`, on the CPU; its input is `input`."""
        import torch

        from compressbench.measure.session import open_session, options

        return open_session(self.path, options(torch.get_num_threads()))

    @cached_property
    def model(self) -> nn.Module:
        """The torch model with its compressed weights, on the CPU and in eval mode.

        Masked weights are zero, quantized ones on their grid, in float. Raises UserError where the
        run began with a module in hand that was not given to `load`.
        """
        folder = self.folder / ARTIFACT
        config = with_current_targets(_model_config(folder))
        if config["_target_"] != TARGET:
            return artifacts.load(folder, lambda _: _built(config), "").model
        return self._with_given(folder, config)

    def _with_given(self, folder: Path, config: Mapping[str, Any]) -> nn.Module:
        """Built from the caller's module: its structure, the run's tensors."""
        live = {} if self.given is None else {config["state_sha256"]: self.given.module}
        same = self.given is None or self.given.config["module_sha256"] == config["module_sha256"]
        try:
            with live_objects(live):
                model = artifacts.load(folder, lambda _: _built(config), "").model
        except (RuntimeError, AttributeError, KeyError, CheckFailedError) as error:
            if same:
                raise
            first = str(error).partition("\n")[0]
            raise UserError(f"model is not the module of this run: {first}") from error
        if not same:
            warnings.warn(
                f"{config['name']} has other code or options than in the run; what it was is in "
                f"{folder / 'model_source.py'}",
                stacklevel=4,
            )
        return model

    def __repr__(self) -> str:
        return f"<compressbench.Run {headline(self.report)}; {self.folder}>"


def load(folder: str | Path, model: nn.Module | None = None) -> Run:
    """A finished run, from its folder.

    Args:
        folder: The run folder, such as `result.folder` or that of a sweep's trial.
        model: The module that was given to `compress`, or a fresh one of the same class and
            options: its weights do not matter. Only where the run began with a module in hand.

    Returns:
        The `Run`: `model` (torch), `session` (ONNX Runtime), `report`, `path`; the first two are
        opened when they are asked for.

    Raises:
        UserError: Where the folder has no finished run.

    Example:
        >>> run = compressbench.load("runs/2025-01-31/12-00-00-000000")
        >>> logits = run.session.run(None, {"input": images})[0]
    """
    where = Path(folder).expanduser().absolute()
    report = finished_report(where)
    if model is None:
        return Run(where, report)
    if _model_config(where / ARTIFACT)["_target_"] != TARGET:
        raise UserError(f"model: the model of {where} is built from its config; give none")
    return Run(where, report, given_model(model, trained=False))


def _built(config: Mapping[str, Any]) -> nn.Module:
    built: nn.Module = build_model(config)
    return built


def _model_config(artifact: Path) -> dict[str, Any]:
    path = artifact / artifacts.DESCRIPTION
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return config
