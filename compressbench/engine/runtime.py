"""Resolves the `trainer` config group to a Runtime on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest
from compressbench.core.types import Runtime

_OPTIONS = {"accelerator", "devices", "precision", "threads", "max_batches"}
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def resolve(config: Mapping[str, Any]) -> Runtime:
    """Check the `trainer` config and resolve `auto` and `null`."""
    for name in sorted(set(config) ^ _OPTIONS):
        problem = "is required" if name in _OPTIONS else f"no such option{nearest(name, _OPTIONS)}"
        raise UserError(f"trainer.{name}: {problem}")
    if config["precision"] not in _PRECISIONS:
        raise UserError(
            f"trainer.precision={config['precision']}: choose from {', '.join(_PRECISIONS)}"
        )
    accelerator = _accelerator(config["accelerator"])
    devices = _count("devices", config["devices"])
    at_hand = torch.cuda.device_count() if accelerator == "gpu" else devices
    if devices > at_hand:
        raise UserError(f"trainer.devices={devices}: there are {at_hand} GPUs here")
    threads = config["threads"]
    return Runtime(
        accelerator="gpu" if accelerator == "gpu" else "cpu",
        devices=devices,
        precision=config["precision"],
        threads=_default_threads(devices) if threads is None else _count("threads", threads),
        max_batches=None
        if config["max_batches"] is None
        else _count("max_batches", config["max_batches"]),
    )


def _accelerator(wanted: Any) -> str:
    if wanted not in ("auto", "cpu", "gpu"):
        raise UserError(f"trainer.accelerator={wanted}: choose from auto, cpu, gpu")
    if wanted == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu: torch sees no CUDA device; use trainer=cpu")
    if wanted == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return str(wanted)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"trainer.{name} must be an integer of at least 1, got {value!r}")
    return value


def _default_threads(devices: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // devices)
