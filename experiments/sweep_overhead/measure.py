"""What a sweep costs beside its trials: our loop against Optuna's own ask and tell.

python experiments/sweep_overhead/measure.py [--trials 2000] [--workers 2] [--rounds 2]

The objective returns at once. Both sides run the same number of processes on an SQLite database in
WAL mode with the same settings and the same sampler; ours adds leases, the total over all workers
and the stored result. The sides take turns, on fresh databases. Wall time from the moment when all
workers are ready, and the processor time of the loops, which other work on the machine disturbs
less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from compressbench.results.sweep import Objective
from compressbench.search.result import Result
from compressbench.search.samplers.by_number import ByNumber
from compressbench.search.space import Parameter
from compressbench.search.spec import Spec
from compressbench.search.storage import open_storage
from compressbench.search.worker_loop import work
from compressbench.store.processes import process_token

OBJECTIVES = (Objective("val/accuracy", "maximize"), Objective("size/download_bytes", "minimize"))
SPACE = (
    Parameter("sparsity", "interval(0,1)", False, low=0.0, high=1.0),
    Parameter("bits", "choice(2,4,8)", False, choices=(2, 4, 8), texts=("2", "4", "8")),
)
FIGURES = ("size/onnx_bytes", "size/params", "latency/p50_ms", "compute/macs", "val/agreement")


def make_spec(folder: Path, trials: int) -> Spec:
    return Spec(
        name="noop", folder=str(folder), storage=None, tag="", command=[], metric="accuracy",
        validation_rows=1, objectives=OBJECTIVES, constraints=(), space=SPACE, fixed=(), conf=(),
        sampler={}, starts=(), n_trials=trials, seed=0, seeds=1, early_stop=False,
        lease_seconds=30.0,
    )  # fmt: skip


def make_sampler(name: str) -> Any:
    import optuna

    if name == "random":
        return ByNumber(0)
    return {"tpe": optuna.samplers.TPESampler, "nsgaii": optuna.samplers.NSGAIISampler}[name]()


def suggested(trial: Any) -> list[float]:
    sparsity, bits = (trial._suggest(p.key, p.distribution()) for p in SPACE)
    return [1 - sparsity**2 / bits, bits * (2 - sparsity)]


def ours(folder: Path, trials: int, workers: int, sampler: str, gate: Any, used: Any) -> None:
    spec = make_spec(folder, trials)
    storage = open_storage(folder, None, "noop", 30.0)
    storage.study.sampler = make_sampler(sampler)

    def perform(trial: Any, lease: Any) -> Result:
        values = dict(zip((o.name for o in OBJECTIVES), suggested(trial), strict=True))
        return Result("complete", values | dict.fromkeys(FIGURES, 1.0), dict.fromkeys(FIGURES, 1.0))

    gate.wait()
    began = time.process_time()
    work(storage, spec, process_token(), perform)
    used.put(time.process_time() - began)


def optunas(folder: Path, trials: int, workers: int, sampler: str, gate: Any, used: Any) -> None:
    study = open_storage(folder, None, "noop", 30.0).study
    study.sampler = make_sampler(sampler)
    gate.wait()
    began = time.process_time()
    for _ in range(trials // workers):
        trial = study.ask()
        study.tell(trial, suggested(trial))
    used.put(time.process_time() - began)


def seconds(side: Any, trials: int, workers: int, sampler: str) -> tuple[float, float]:
    """(wall seconds, processor seconds of all workers) from when they are ready."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        open_storage(folder, None, "noop", 30.0, objectives=OBJECTIVES)
        gate, used = spawn.Barrier(workers + 1), spawn.Queue()
        arguments = (folder, trials, workers, sampler, gate, used)
        processes = [spawn.Process(target=side, args=arguments) for _ in range(workers)]
        for process in processes:
            process.start()
        gate.wait()
        began = time.monotonic()
        processor = sum(used.get() for _ in processes)
        for process in processes:
            process.join()
        took = time.monotonic() - began
        assert all(process.exitcode == 0 for process in processes)
        found = open_storage(folder, None, "noop", 30.0).study.get_trials(deepcopy=False)
        assert len(found) == trials
        assert all(t.state.is_finished() for t in found)
        return took, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sampler", choices=["random", "tpe", "nsgaii"], default="random")
    chosen = parser.parse_args()
    names = {"Optuna's ask and tell": optunas, "ours": ours}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(chosen.rounds):
        for name, side in names.items():
            taken[name].append(seconds(side, chosen.trials, chosen.workers, chosen.sampler))
    for position, what in enumerate(("wall", "processor")):
        medians = []
        for name, values in taken.items():
            each = [1000 * v[position] / chosen.trials for v in values]
            medians.append(statistics.median(each))
            shown = ", ".join(f"{v:.1f}" for v in each)
            print(f"{what}: {name} {medians[-1]:.1f} ms a trial ({shown})")
        print(f"{what}: ratio {medians[1] / medians[0]:.2f}")


if __name__ == "__main__":
    main()
