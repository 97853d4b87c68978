"""A rank: one of the processes of a stage. Joins the group, loads the parents, runs the stage."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from compressbench.config.boundary import freeze
from compressbench.config.instantiate import instantiate
from compressbench.core import artifact as artifacts
from compressbench.core.atomic import write_json_atomic
from compressbench.core.disk_full import disk_full, is_disk_full
from compressbench.core.errors import CheckFailedError, TransientError, UserError
from compressbench.core.redact import redacted_output
from compressbench.core.signals import leave_to_parent
from compressbench.core.types import Runtime
from compressbench.engine.context import Progress, RunContext
from compressbench.engine.launcher import EXIT_BUG, EXIT_CHECK, EXIT_USER
from compressbench.engine.rank_watch import STACK, STACK_SIGNAL
from compressbench.engine.stage_job import Job, build_model, execute
from compressbench.store.entries import Store


def _run(path: Path) -> None:
    description = json.loads(path.read_text())
    runtime = Runtime(**description["runtime"])
    torch.set_num_threads(runtime.threads)
    if runtime.accelerator == "gpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if runtime.accelerator == "gpu" else "gloo")
    store = Store(Path(description["store"]))
    data = instantiate(description["dataset"], "dataset")
    scratch = Path(description["scratch"])
    run_context = RunContext(store, data, description["dataset"], runtime,
                        description["checkpoint_seconds"], _progress_file(scratch),
                        description["opset"])  # fmt: skip
    job = Job(**description["job"])
    parents = {
        role: artifacts.load(_entry_folder(store, key), build_model, key)
        for role, key in description["parents"].items()
    }
    execute(job, parents, run_context.context(job, scratch), Path(description["folder"]))
    dist.barrier()
    dist.destroy_process_group()


def _entry_folder(store: Store, key: str) -> Path:
    entry = store.read(key)
    if entry is None:
        raise TransientError(f"cache entry {key[:12]} disappeared during the run")
    return entry.folder


def _progress_file(scratch: Path) -> Progress:
    def progress(done: int, total: int, text: str) -> None:
        if os.environ["RANK"] == "0":
            write_json_atomic(scratch / "progress.json", [done, total, text])

    return progress


def _die_with_parent() -> None:
    """End with the parent: a rank that outlives a killed run would disturb the next one."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(EXIT_BUG)


def _write_stack_when_asked(scratch: Path) -> None:
    """Answer the parent's question where we are, even while we wait in C++."""
    file = (scratch / STACK.format(os.environ["RANK"])).open("w")
    faulthandler.register(STACK_SIGNAL, file=file)


def main() -> None:
    leave_to_parent()
    _write_stack_when_asked(Path(sys.argv[1]).parent)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _run(Path(sys.argv[1]))
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(EXIT_USER)  # the other ranks may wait in a collective: do not join them
    except CheckFailedError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(EXIT_CHECK)
    except Exception as error:  # noqa: BLE001 - shown in full by the parent
        if is_disk_full(error):
            print(disk_full(error), file=sys.stderr, flush=True)
            os._exit(EXIT_USER)
        traceback.print_exc()
        os._exit(EXIT_BUG)


if __name__ == "__main__":
    freeze()
    with redacted_output():
        main()
