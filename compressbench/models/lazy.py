"""Gives lazy layers, such as nn.LazyConv2d, their shapes: by one pass over blank inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compressbench.core.types import DataSpec
from compressbench.models.plain import unwrapped

_TARGET = f"{__name__}.initialised"


def initialised(network: nn.Module, input_shape: Sequence[int], ids: bool = False) -> nn.Module:
    """`network` after a pass over two blank samples, which makes its lazy layers ordinary ones.

    Args:
        network: a model with lazy layers, returned itself.
        input_shape: shape of one sample.
        ids: True for a model of token ids, False for one of float inputs.
    """
    network = unwrapped(network).eval()
    blank = torch.zeros(2, *input_shape, dtype=torch.int64 if ids else torch.float32)
    with torch.no_grad():
        network(blank)
    return network


def initialised_config(config: Mapping[str, Any], spec: DataSpec) -> dict[str, Any]:
    """The config of the model of `config`, initialised for the inputs of `spec`."""
    return {
        "_target_": _TARGET,
        "network": dict(config),
        "input_shape": list(spec.input_shape),
        "ids": spec.tokens is not None,
    }
