"""Ten thousand trials that return at once: seconds and memory as their number grows.

python experiments/sweep_overhead/long.py [--trials 10000]

One process each, side by side: our loop, and Optuna's own ask and tell, as in `measure.py`. Prints
the processor time of every thousand trials, and the memory of the process after them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import FIGURES, OBJECTIVES, make_sampler, make_spec, suggested

from compressbench.search.result import Result
from compressbench.search.storage import open_storage
from compressbench.search.worker_loop import work
from compressbench.store.processes import process_token

EVERY = 1000


def reporter(name: str) -> Callable[[int], None]:
    began = [time.process_time()]

    def report(done: int) -> None:
        if done % EVERY == 0:
            now, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"{name}: {done} trials, the last {EVERY} in {now - began[0]:.1f} s of processor "
                  f"time, at most {memory / 1024:.0f} MiB", flush=True)  # fmt: skip
            began[0] = now

    return report


def ours(trials: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        spec, report = make_spec(Path(name), trials), reporter("ours")
        storage = open_storage(Path(name), None, "noop", 30.0, objectives=OBJECTIVES)
        storage.study.sampler = make_sampler("random")

        def perform(trial: Any, lease: Any) -> Result:
            report(trial.number)
            values = dict(zip((o.name for o in OBJECTIVES), suggested(trial), strict=True))
            figures = values | dict.fromkeys(FIGURES, 1.0)
            return Result("complete", figures, dict.fromkeys(FIGURES, 1.0))

        work(storage, spec, process_token(), perform)
        report(trials)


def optunas(trials: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        study = open_storage(Path(name), None, "noop", 30.0, objectives=OBJECTIVES).study
        study.sampler, report = make_sampler("random"), reporter("Optuna's")
        for number in range(trials):
            report(number)
            trial = study.ask()
            study.tell(trial, suggested(trial))
        report(trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    chosen = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    sides = [spawn.Process(target=side, args=(chosen.trials,)) for side in (ours, optunas)]
    for process in sides:
        process.start()
    for process in sides:
        process.join()
    assert all(process.exitcode == 0 for process in sides)


if __name__ == "__main__":
    main()
