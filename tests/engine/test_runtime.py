"""The trainer group: what it resolves to, and what it refuses."""

import pytest
import torch

from compressbench.core.errors import UserError
from compressbench.core.types import Runtime
from compressbench.engine.runtime import resolve

CPU = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "threads": 3,
       "max_batches": None}  # fmt: skip


def test_resolves():
    assert resolve(CPU) == Runtime("cpu", 1, "32-true", 3, None)
    assert resolve({**CPU, "threads": None, "devices": 16}).threads >= 1
    auto = resolve({**CPU, "accelerator": "auto"}).accelerator
    assert auto == ("gpu" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": 0}, r"trainer.devices must be an integer in \[1, \d+\], got 0"),
        ({"devices": 1.5}, "got 1.5"),
        ({"threads": "all"}, r"trainer.threads must be an integer in \[1, \d+\], got 'all'"),
        ({"threads": 100_000}, r"trainer.threads must be an integer in \[1, \d+\], got 100000"),
        ({"max_batches": True}, "trainer.max_batches must be"),
        ({"precision": "8-true"}, "trainer.precision=8-true: choose from 32-true"),
        ({"accelerator": "tpu"}, "trainer.accelerator=tpu: choose from auto, cpu, gpu"),
        ({"device": 1}, "trainer.device: no such option; did you mean devices"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(UserError, match=message):
        resolve({**CPU, **change})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_refuses_a_gpu_that_is_not_there():
    with pytest.raises(UserError, match="torch sees no CUDA device; use trainer=cpu"):
        resolve({**CPU, "accelerator": "gpu"})
