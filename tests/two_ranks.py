"""Two processes that compute together, forked from one that has torch already."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch import multiprocessing as mp

PRELOADED = ["torch", "torch.distributed", "pytest", "hypothesis", "onnxruntime",
             "compressbench.training.batchnorm", "compressbench.data.digits"]  # fmt: skip


def on_two_ranks(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What `work(rank, *arguments)` returns on rank 0 and rank 1; `folder` is theirs meanwhile."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    with mp.Manager() as manager:
        results = manager.dict()
        mp.start_processes(
            _rank, (work, str(folder / "ranks"), results, arguments), 2, start_method="forkserver"
        )
        return [results[0], results[1]]


def _rank(rank: int, work: Callable[..., Any], store: str, results: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}  # for Lightning
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "NODE_RANK": "0"}
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results[rank] = work(rank, *arguments)
    distributed.destroy_process_group()
