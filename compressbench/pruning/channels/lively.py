"""A copy of a model whose outputs depend on every part of it, for proofs."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressbench.pruning.channels.tracing import plainly

SHIFT = 0.3  # deviation of random shifts, relative to that of the values


def lively(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `model` with random scales, shifts and BatchNorm statistics.

    Scales are uniform in [0.5, 1.5), and shifts normal with deviation `SHIFT`, as are parameters
    of which all elements are equal (scales that start with zero). BatchNorm statistics are those
    of `example` [B, ...], times or plus such numbers: with any others, values vanish layer by
    layer in a deep model, and its outputs would be nearly constant.
    """
    copy = deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    norms = [m for m in copy.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
    with torch.no_grad(), torch.random.fork_rng(devices=[]), plainly():
        for module in copy.modules():
            for name, parameter in module.named_parameters(recurse=False):
                _enliven_(name, parameter, generator)
        _measure_(copy.eval(), norms, example)
        for norm in norms:
            _shift_(norm, generator)
    return copy.eval()


def _enliven_(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if not parameter.is_floating_point() or parameter.numel() < 2:
        return
    if name == "bias":
        parameter.normal_(0.0, SHIFT, generator=generator)
    elif parameter.ndim == 1 or bool((parameter == parameter.flatten()[0]).all()):
        parameter.uniform_(0.5, 1.5, generator=generator)


def _measure_(model: nn.Module, norms: list[_BatchNorm], example: Tensor) -> None:
    """Set the statistics of BatchNorm layers to those of one batch."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(example)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def _shift_(norm: _BatchNorm, generator: torch.Generator) -> None:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    var.clamp_min_(1e-6).mul_(torch.empty_like(var).uniform_(0.5, 1.5, generator=generator))
    mean.add_(torch.empty_like(mean).normal_(0.0, SHIFT, generator=generator) * var.sqrt())
