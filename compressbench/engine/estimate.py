"""Estimates how long a plan takes: images per stage times the measured speed of its models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from compressbench.core.types import Data, DataSpec, Runtime
from compressbench.engine.plan import Planned
from compressbench.engine.stage_job import build_model

MEASURING_SECONDS = 7.0  # export, agreement and latency of one stage, as measured on two cores
PROBE_IMAGES, PROBE_SECONDS = 32, 0.3


def stage_seconds(plan: Sequence[Planned], data: Data, runtime: Runtime) -> dict[str, float]:
    """Stage name -> estimated seconds, by running a few batches of noise through each model.

    A pruned model is taken to be as slow as the one it came from. Each teacher runs forward on
    every image that its student is trained on.
    """
    torch.set_num_threads(runtime.threads)
    images = len(data.split("train"))
    speeds: dict[str, tuple[float, float]] = {}
    seconds: dict[str, float] = {}
    for planned in plan:
        speeds[planned.name] = _speed_of(planned, speeds, data.spec, runtime)
        trained, forwarded = planned.stage.passes(images)
        if planned.job.checkpoint is not None:
            trained = 0
        train, forward = speeds[planned.name]
        teachers = [n for role, n in planned.parents.items() if role.startswith("teacher")]
        taught = sum(trained * speeds[name][1] for name in teachers)
        work = (trained * train + forwarded * forward + taught) / runtime.devices
        seconds[planned.name] = work + MEASURING_SECONDS
    return seconds


def _speed_of(
    planned: Planned,
    speeds: Mapping[str, tuple[float, float]],
    spec: DataSpec,
    runtime: Runtime,
) -> tuple[float, float]:
    if planned.job.model is None:
        return speeds[planned.parents["model"]]
    model = build_model(planned.job.model).to(runtime.device)
    inputs = spec.noise(PROBE_IMAGES, torch.Generator().manual_seed(0))
    return _seconds_per_image(model, inputs.to(runtime.device))


def _seconds_per_image(model: nn.Module, inputs: torch.Tensor) -> tuple[float, float]:
    """(one training step, one forward pass), in seconds per image, after a warm-up."""

    def forward() -> None:
        with torch.no_grad():
            model.eval()(inputs).sum().item()

    def train() -> None:
        torch.autograd.backward(model.train()(inputs).square().mean())

    found = []
    for action in (train, forward):
        action()
        rounds, started = 0, time.perf_counter()
        while time.perf_counter() - started < PROBE_SECONDS:
            action()
            rounds += 1
        found.append((time.perf_counter() - started) / rounds / len(inputs))
    return found[0], found[1]
