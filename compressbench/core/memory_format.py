"""Channels-last memory format, in which convolutions on a CPU are fastest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def channels_last(model: nn.Module, example: Tensor, device: torch.device) -> Iterator[None]:
    """Within the block, pass images [B, C, H, W] to `model` in channels-last memory format.

    On one core this reduced the time of a training step to 85 % for ResNet-20 and to 70 % for
    MobileNetV2; sums are taken in another order. It has no effect on an accelerator, for inputs
    other than images, and for a model that fails on `example` in this format (`x.view` of a map).
    """
    images = example.ndim == 4 and example.shape[1] > 1  # with one channel the formats are equal
    if device.type != "cpu" or not images or not _takes(model, example):
        yield
        return
    handle = model.register_forward_pre_hook(_reorder)
    try:
        yield
    finally:
        handle.remove()


def reordered(inputs: Tensor) -> Tensor:
    """The same images in channels-last memory format."""
    return inputs.contiguous(memory_format=torch.channels_last)


def _reorder(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (reordered(inputs[0]), *inputs[1:])


@torch.no_grad()
def _takes(model: nn.Module, example: Tensor) -> bool:
    copy = deepcopy(model).eval()  # a forward pass may change a model
    try:
        copy(reordered(example))
    except RuntimeError:
        return False
    return True
