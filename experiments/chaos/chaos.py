"""A sweep whose workers are killed all the time ends like one that nobody disturbed.

python experiments/chaos/chaos.py [--trials 60] [--workers 3] [--every 4] [--work FOLDER]
    [--tracking] [-- OVERRIDE ...]

Runs the sweep twice, each with a store of its own: in peace, and with kill -9 of a random worker
every few seconds, every other time in the middle of a publication where one is seen. Then checks:
as many finished trials as asked for, each number once, none running, and the same settings and
figures, latency aside. A trial is killed at most twice, since after that it counts as failed.

With --tracking, both sweeps are logged to a new MLflow database, the process that makes it is
killed as well, and each trial must be there once, finished, with its figures.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from compressbench.results.sweep import Sweep
from compressbench.search.snapshot import list_sweeps, read_sweep

ROOT = Path(__file__).parents[2]
SPACE = [
    "recipe=prune_then_quant",
    "recipe.stages.prune.sparsity=interval(0.3,0.95)",
    "recipe.stages.quantize.bits=choice(2,3,4,8)",
    "recipe.stages.quantize.calibration_images=choice(128,512)",
]
PUBLISH_SECONDS = 2.0  # how long to wait for a publication to kill in


MAKING = "while MLflow's database was made"
MAKER_KILLS = 4  # of the process that makes MLflow's database


def command(trials: int, workers: int, tracking: str, overrides: list[str]) -> list[str]:
    return [
        sys.executable, str(ROOT / "run.py"), "-m", *overrides, f"tracking={tracking}",
        "sampler@search.sampler=random", "search.early_stop=false", "search.corners=false",
        "search.lease_seconds=10", f"search.n_trials={trials}", f"search.workers={workers}",
    ]  # fmt: skip


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    environment = {**os.environ, "COMPRESSBENCH_STORE": str(folder / "store")}
    return subprocess.Popen(words, cwd=folder, env=environment)


def children_of(supervisor: int, kind: bytes) -> list[int]:
    """The ids of the living children with `kind` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == supervisor and kind in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def trial_of(worker: int, folder: Path) -> int | None:
    """The trial that a worker is at, from the name of its working folder."""
    for path in folder.glob("sweeps/*/running/*"):
        number, _, token = path.name.partition("-")
        if token.split("-")[1] == str(worker):
            return int(number)
    return None


def wait_for_publication(folder: Path) -> bool:
    """Wait until the store is writing an entry, for a while."""
    deadline = time.monotonic() + PUBLISH_SECONDS
    while time.monotonic() < deadline:
        if any(not p.name.startswith("work-") for p in folder.glob("store/tmp/*")):
            return True
        time.sleep(0.002)
    return False


def wait(seconds: float, supervisor: int, folder: Path, chance: random.Random) -> int:
    """Wait; kill the process that makes MLflow's database if it is seen. Returns the kills."""
    kills, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(folder.glob(".mlflow.db.*/mlflow.db")):
            time.sleep(chance.uniform(0, 0.5))
            for maker in children_of(supervisor, b"sweep_drain"):
                if not (folder / "mlflow.db").exists():
                    os.kill(maker, signal.SIGKILL)
                    kills += 1
            break
        time.sleep(0.02)
    time.sleep(max(0.0, deadline - time.monotonic()))
    return kills


def disturb(
    process: subprocess.Popen[bytes], folder: Path, every: float, trials: int
) -> Counter[str]:
    """Kill random workers until all trials have ended."""
    chance, counted, killed = random.Random(0), Counter[str](), Counter[int]()
    while process.poll() is None:
        pause = chance.uniform(0.5, 1.5) * every
        if counted[MAKING] < MAKER_KILLS:
            counted[MAKING] += wait(pause, process.pid, folder, chance)
        else:
            time.sleep(pause)
        publishing = chance.random() < 0.5 and wait_for_publication(folder)
        alive = children_of(process.pid, b"search.worker")
        finished = len(list(folder.glob("sweeps/*/trials/*")))
        if not alive or finished == trials:
            continue
        worker = chance.choice(alive)
        trial = trial_of(worker, folder)
        if trial is not None and killed[trial] == 2:
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
            counted["kills"] += 1
            counted["in a trial"] += trial is not None
            counted["while the store was written"] += publishing
            if trial is not None:
                killed[trial] += 1
    return counted


def settled(sweep: Sweep) -> list[tuple[object, ...]]:
    """Each trial without what a clock measured."""
    return [
        (t.number, t.state, dict(t.settings),
         {k: v for k, v in t.figures.items() if "latency" not in k})
        for t in sweep.trials
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between kills")
    parser.add_argument("--work", type=Path, default=Path("chaos"), help="an empty folder")
    parser.add_argument("--tracking", action="store_true", help="log to a new MLflow database")
    parser.add_argument("overrides", nargs="*", default=SPACE)
    chosen = parser.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    tracking = "local" if chosen.tracking else "none"
    words = command(chosen.trials, chosen.workers, tracking, chosen.overrides)
    sweeps, seconds = [], []
    counted: Counter[str] = Counter()
    for name in ("calm", "disturbed"):
        folder, began = (chosen.work / name).resolve(), time.monotonic()
        process = start(words, folder)
        if name == "disturbed":
            counted = disturb(process, folder, chosen.every, chosen.trials)
        assert process.wait() == 0, f"the {name} sweep ended with {process.returncode}"
        seconds.append(time.monotonic() - began)
        (where,) = list_sweeps(folder / "sweeps")
        sweeps.append(read_sweep(where))
        if chosen.tracking:
            subprocess.run([sys.executable, str(ROOT / "run.py"), "sync"], cwd=folder, check=True)
            check_tracking(folder / "mlflow.db", sweeps[-1])
    calm, disturbed = sweeps
    check(calm, disturbed, chosen.trials)
    print(f"{dict(counted)}; {seconds[0]:.0f} s in peace, {seconds[1]:.0f} s with kills")


def check(calm: Sweep, disturbed: Sweep, trials: int) -> None:
    for sweep in (calm, disturbed):
        numbers = [t.number for t in sweep.trials]
        assert numbers == list(range(trials)), numbers
        assert {t.state for t in sweep.trials} == {"complete"}, [t.reason for t in sweep.trials]
        folders = sorted(int(p.name) for p in Path(sweep.folder, "trials").iterdir())
        wanted = sorted(t.number for t in sweep.trials if Path(t.folder).name == str(t.number))
        assert folders == wanted, (folders, wanted)
        assert not Path(sweep.folder, "running").exists()
    for one, other in zip(settled(calm), settled(disturbed), strict=True):
        assert one == other, f"{one}\n{other}"
    print(f"{trials} trials, none running, none twice, all figures the same")


def check_tracking(database: Path, sweep: Sweep) -> None:
    """Each trial is one finished run of MLflow, with the accuracy of its last stage."""
    query = (
        "SELECT r.status, m.value FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
        "LEFT JOIN latest_metrics m ON m.run_uuid = r.run_uuid AND m.key = 'val/accuracy' "
        "WHERE t.key = 'mlflow.parentRunId' AND r.lifecycle_stage = 'active'"
    )
    with contextlib.closing(sqlite3.connect(database)) as connection:
        runs = sorted(connection.execute(query).fetchall())
    wanted = sorted(("FINISHED", trial.figures["val/accuracy"]) for trial in sweep.trials)
    assert runs == wanted, f"{runs}\n{wanted}"
    print(f"{len(runs)} finished runs in {database}, each once")


if __name__ == "__main__":
    main()
