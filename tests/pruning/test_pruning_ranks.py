"""Pruning with training in between, on two processes: the same masks on both, and where nothing
that the ranks share out decides, those of one process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from compressbench.core import artifact
from compressbench.core.types import Runtime
from compressbench.pruning.criteria.movement import Movement
from compressbench.pruning.criteria.snip import Snip
from tests.pruning.schedule_net import LAYERS, gradual, rounds, trained
from tests.training.test_fit import context
from tests.two_ranks import on_two_ranks

STILL = partial(torch.optim.SGD, lr=1e-12)  # nothing moves, so all depends on the first weights
STAGES = {
    "gradual": gradual(0.7),
    "gradual, by gradients": replace(gradual(0.7), criterion=Snip(48, 8)),
    "movement": replace(gradual(0.7), criterion=Movement()),
    "iterative": rounds(0.7),
    "gradual, still": replace(gradual(0.7), optimizer=STILL),
    "iterative, still": replace(rounds(0.7), optimizer=STILL),
}


def masks(found: artifact.Artifact) -> dict[str, list[bool]]:
    return {n: found.model.get_submodule(n).weight_mask.flatten().tolist() for n in LAYERS}


def one_rank(rank: int, folder: str):
    found = {}
    for name, stage in STAGES.items():
        place = replace(context(f"{folder}/{name}"), runtime=Runtime(devices=2))
        result = stage.run({"model": trained()}, place).artifact
        found[name] = (masks(result), artifact.digest(result))
    return found


@pytest.mark.long
def test_two_ranks_prune_alike(tmp_path):
    results = on_two_ranks(one_rank, tmp_path, str(tmp_path))
    first, second = results[0], results[1]
    for name, stage in STAGES.items():
        assert first[name] == second[name], name
        zeros = sum(not kept for layer in first[name][0].values() for kept in layer)
        assert zeros == round(0.7 * 128), name
        if "still" in name:
            alone = stage.run({"model": trained()}, context(tmp_path / f"alone {name}")).artifact
            assert first[name][0] == masks(alone), name
