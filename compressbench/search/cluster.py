"""Runs workers as jobs of a Hydra launcher: Slurm through submitit, Ray, and so on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressbench.results.sweep import Sweep
from compressbench.search.spec import Spec, load_spec
from compressbench.search.storage import SweepStorage
from compressbench.search.supervisor import LOOK_SECONDS, OnChange

SPEC_FILE = ".worker.json"
Launch = Callable[
    [int, Path], None
]  # (number of workers, file with the spec); returns when all have ended


def run_worker(config: Any) -> None:
    """The task of one job: `config.search.worker` has the `spec`, a path, and the `index`."""
    from compressbench.search.worker import serve

    job = config.search.worker
    serve(load_spec(Path(job.spec).read_text(encoding="utf-8")), int(job.index))


def supervise_jobs(
    spec: Spec,
    count: int,
    launch: Launch,
    storage: SweepStorage,
    look: Callable[[], Sweep],
    on_change: OnChange,
) -> None:
    """Let a launcher run `count` workers, and watch the sweep until all have ended.

    A job that dies is not started again; another worker adopts its trial. Who stops us does not
    stop the jobs. Raises what a job raised.
    """
    path = spec.home / SPEC_FILE
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # a URL's password
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(spec.dump())
    errors: list[BaseException] = []

    def run() -> None:
        try:
            launch(count, path)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    seen: dict[str, int] = {}
    while thread.is_alive():
        time.sleep(LOOK_SECONDS)
        states = storage.states()
        if states != seen:
            seen = states
            on_change(look())
    path.unlink(missing_ok=True)
    if errors:
        raise errors[0]
