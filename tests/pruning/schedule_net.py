"""A small network and schedules of pruning."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from compressbench.core.types import TRAINED, Artifact
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.prune_gradual import PruneGradually
from compressbench.pruning.prune_iterative import PruneIteratively

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
FIT = {"batch_size": 16, "optimizer": SGD}


PLAIN = partial(torch.optim.SGD, lr=0.05)


LAYERS = ("1", "4")


STEPS = 96 // 16  # of an epoch


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)
    ).eval()


def trained() -> Artifact:
    return Artifact(net(), {"_target_": "net"}, (), frozenset({TRAINED}))


def zeros(model: nn.Module) -> int:
    return sum(int((model.get_submodule(n).weight == 0).sum()) for n in LAYERS)


def gradual(sparsity: float = 0.8, **options) -> PruneGradually:
    options = {"epochs": 2, "updates": 4, **options}
    return PruneGradually(Magnitude(), sparsity, **FIT, **options)


def rounds(sparsity: float = 0.75, **options) -> PruneIteratively:
    options = {"epochs": 1, "rounds": 2, **options}
    return PruneIteratively(Magnitude(), sparsity, **FIT, batchnorm_images=32, **options)


class Died(Exception):  # noqa: N818
    pass
