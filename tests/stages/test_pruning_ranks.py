"""Pruning with training in between, on two processes: the same masks on both, and where nothing
that the ranks share out decides, those of one process.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_fit import context
from test_pruning_schedules import LAYERS, gradual, rounds, trained

from compressbench import artifact
from compressbench.core import Runtime
from compressbench.criteria.movement import Movement
from compressbench.criteria.snip import Snip

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


def one_rank(rank: int, folder: str, results) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "NODE_RANK": "0"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, stage in STAGES.items():
        place = replace(context(f"{folder}/{name}"), runtime=Runtime(devices=2))
        result = stage.run({"model": trained()}, place).artifact
        found[name] = (masks(result), artifact.digest(result))
    results[rank] = found
    dist.destroy_process_group()


@pytest.mark.long
def test_two_ranks_prune_alike(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(one_rank, (str(tmp_path), results), nprocs=2)
        first, second = results[0], results[1]
    for name, stage in STAGES.items():
        assert first[name] == second[name], name
        zeros = sum(not kept for layer in first[name][0].values() for kept in layer)
        assert zeros == round(0.7 * 128), name
        if "still" in name:
            alone = stage.run({"model": trained()}, context(tmp_path / f"alone {name}")).artifact
            assert first[name][0] == masks(alone), name
