"""Resolves the `trainer` config group to a Runtime on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest
from compressbench.core.types import Runtime
from compressbench.core.validation import check_integer

_OPTIONS = {"accelerator", "devices", "precision", "threads", "max_batches"}
MOST_THREADS = 256  # where there are fewer cores; OpenMP crashes from some thousands on
MOST_DEVICES = 16  # processes, where there are fewer cores
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
    check_integer("trainer.devices", config["devices"], 1, max(MOST_DEVICES, _cores()))
    devices = config["devices"]
    at_hand = torch.cuda.device_count() if accelerator == "gpu" else devices
    if devices > at_hand:
        raise UserError(f"trainer.devices={devices}: there are {at_hand} GPUs here")
    threads, max_batches = config["threads"], config["max_batches"]
    if threads is not None:
        check_integer("trainer.threads", threads, 1, max(MOST_THREADS, _cores()))
    if max_batches is not None:
        check_integer("trainer.max_batches", max_batches, 1)
    return Runtime(
        accelerator="gpu" if accelerator == "gpu" else "cpu",
        devices=devices,
        precision=config["precision"],
        threads=max(1, _cores() // devices) if threads is None else threads,
        max_batches=max_batches,
    )


def _accelerator(wanted: Any) -> str:
    if wanted not in ("auto", "cpu", "gpu"):
        raise UserError(f"trainer.accelerator={wanted}: choose from auto, cpu, gpu")
    if wanted == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu: torch sees no CUDA device; use trainer=cpu")
    if wanted == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return str(wanted)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
