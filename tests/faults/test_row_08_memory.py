"""Memory that runs out: one line, nothing stored, and a sweep goes on."""

from __future__ import annotations

import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from compressbench.core.errors import UserError
from compressbench.core.memory import OutOfMemoryError, is_out_of_memory, memory_of, oom_kills
from compressbench.results.sweep import Sweep
from compressbench.search import supervisor
from compressbench.search.result import load
from compressbench.search.worker import READY
from tests.end_to_end.running import stages_in
from tests.faults import forked
from tests.search.noop import OBJECTIVES, make_spec, make_storage

TOO_LARGE = 2**46
GREEDY = f"""
import torch
from compressbench.models.mlp import Mlp


class Net(Mlp):
    calls = 0

    def forward(self, inputs):
        self.calls += 1
        if self.calls > 40 and self.training:
            torch.empty({TOO_LARGE})
        return super().forward(inputs)
"""
SMALL = ("model=mlp", "model._target_=greedy.Net", "trainer=debug", "trainer.threads=1",
         "tracking=none", "recipe=baseline")  # fmt: skip


@pytest.mark.parametrize(
    "work",
    [lambda: torch.empty(TOO_LARGE), lambda: np.zeros(TOO_LARGE), lambda: bytearray(TOO_LARGE)],
    ids=["torch", "numpy", "python"],
)
def test_row_08_what_libraries_say_of_memory_is_one_line_with_the_place(work):
    message = r"^train: out of memory: .*needs less$"
    with pytest.raises(OutOfMemoryError, match=message) as caught, memory_of("train"):
        work()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "std::bad_alloc",
        "CUDA out of memory. Tried to allocate 2 GiB",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "[Errno 12] Cannot allocate memory",
        "Failed to allocate memory for requested buffer of size 8",
    ],
)
def test_row_08_other_words_for_it(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_row_08_other_errors_pass_as_they_are():
    with pytest.raises(UserError, match=r"^bits must be 3$"), memory_of("train"):
        raise UserError("bits must be 3")


@pytest.mark.long
def test_row_08_a_stage_that_needs_too_much_is_one_line_and_not_stored(tmp_path):
    (tmp_path / "greedy.py").write_text(GREEDY)
    arguments = ["--allow", "greedy.*", *SMALL, "recipe.stages.train.epochs=40"]
    ended = forked.run(arguments, tmp_path, tmp_path / "store")
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("compressbench: recipe.stages.train: out of memory: ")
    assert not stages_in(tmp_path / "store")
    assert not list(tmp_path.glob("store/tmp/build-*"))


@contextmanager
def memory_group(megabytes: int):
    """A control group whose processes the kernel kills beyond so much memory."""
    group = Path("/sys/fs/cgroup/memory") / f"compressbench-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(megabytes * 2**20))
    except OSError:
        pytest.skip("control groups (version 1) cannot be made here")
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


HUNGRY = """
import os, sys, time
from pathlib import Path
sys.stdin.readline()
from compressbench.store.processes import process_token
from tests.search.noop import make_spec, make_storage
spec = make_spec(Path(sys.argv[2]), 2)
storage = make_storage(spec, create=False)
storage.new_trial(2, process_token(), ())
storage.leases.hold("trial/0", process_token())
print("{ready}", flush=True)
Path(sys.argv[1]).write_text(str(os.getpid()))
held = bytearray(2**30)
for n in range(0, 2**30, 4096): held[n] = 1
"""


@pytest.mark.long
def test_row_08_a_trial_that_the_kernel_kills_fails_as_out_of_memory(tmp_path, monkeypatch):
    """A worker that really grows beyond a limit of the kernel."""
    spec = make_spec(tmp_path / "sweep", 2)
    storage = make_storage(spec)
    scripts = [HUNGRY.replace("{ready}", READY), "import sys; sys.stdin.readline()"]
    before = oom_kills()
    with memory_group(300) as group:

        def call():
            words = [sys.executable, "-c", scripts.pop(0), str(group), str(tmp_path / "sweep")]
            return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        monkeypatch.setattr(supervisor, "call_worker", call)
        empty = Sweep("noop", str(spec.home), "", [], "accuracy", OBJECTIVES, (), 2, (), {})
        supervisor.supervise(spec, [call()], storage, lambda: empty, lambda sweep: None)
    assert oom_kills() == before + 1
    result = load(storage.leases.result("trial/0"))
    assert (result.state, result.kind) == ("failed", "memory")
    assert "the kernel killed its process" in result.reason
