"""A sweep whose trials cost nothing: two numbers, and figures that are a formula of them.

`python -m tests.search.noop FOLDER SECONDS` is a worker of it, in a process of its own.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from compressbench.results.sweep import Objective
from compressbench.search.result import Result
from compressbench.search.samplers.by_number import ByNumber
from compressbench.search.space import Parameter
from compressbench.search.spec import Spec
from compressbench.search.storage import open_storage
from compressbench.search.worker_loop import work, work_folder
from compressbench.store.processes import process_token

OBJECTIVES = (Objective("val/accuracy", "maximize"), Objective("size/download_bytes", "minimize"))
SPACE = (
    Parameter("x", "interval(0,1)", False, low=0.0, high=1.0),
    Parameter("bits", "choice(2,4,8)", False, choices=(2, 4, 8), texts=("2", "4", "8")),
)


def make_spec(folder: Path, n_trials: int = 20, lease_seconds: float = 30.0, **changes) -> Spec:
    given = {
        "name": "noop", "folder": str(folder), "storage": None, "tag": "t", "command": ["run"],
        "metric": "accuracy", "validation_rows": 0, "objectives": OBJECTIVES, "constraints": (),
        "space": SPACE,
        "fixed": (), "conf": (), "sampler": {}, "starts": (), "n_trials": n_trials, "seed": 3,
        "seeds": 1, "early_stop": False, "lease_seconds": lease_seconds,
    }  # fmt: skip
    return Spec(**{**given, **changes})


def make_storage(spec: Spec, create: bool = True):
    storage = open_storage(spec.home, spec.storage, spec.name, spec.lease_seconds,
                     objectives=spec.objectives if create else None)  # fmt: skip
    storage.study.sampler = ByNumber(spec.seed)
    return storage


def settings_of(trial) -> dict:
    return {p.key: trial._suggest(p.key, p.distribution()) for p in SPACE}


def figures_of(settings) -> dict[str, float]:
    x, bits = settings["x"], settings["bits"]
    return {"val/accuracy": 1 - x * x / bits, "size/download_bytes": bits * (2 - x)}


def answer(trial, lease) -> Result:
    settings = settings_of(trial)
    return Result("complete", figures_of(settings), {"val/accuracy": 1.0})


def main(folder: Path, seconds: float) -> None:
    spec = make_spec(folder, n_trials=int(sys.argv[3]), lease_seconds=float(sys.argv[4]))
    storage = make_storage(spec, create=False)

    def perform(trial, lease):
        place = work_folder(spec, trial.number, lease.owner)
        place.mkdir(parents=True)
        result = answer(trial, lease)
        time.sleep(seconds)
        (place / "report.json").write_text(str(trial.number))
        return Result(**{**result.__dict__, "folder": f"trials/{trial.number}"})

    print("ready", flush=True)
    work(storage, spec, process_token(), perform)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
