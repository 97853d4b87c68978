"""A sweep whose workers are killed all the time ends like one that nobody disturbed.

python experiments/chaos/chaos.py [--trials 60] [--workers 3] [--every 4] [--work FOLDER]
    [-- OVERRIDE ...]

Runs the sweep twice, each with a store of its own: in peace, and with kill -9 of a random worker
every few seconds, every other time in the middle of a publication where one is seen. Then checks:
as many finished trials as asked for, each number once, none running, and the same settings and
figures, latency aside. A trial is killed at most twice, since after that it counts as failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
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


def command(trials: int, workers: int, overrides: list[str]) -> list[str]:
    return [
        sys.executable, str(ROOT / "run.py"), "-m", *overrides, "tracking=none",
        "sampler@search.sampler=random", "search.early_stop=false", "search.corners=false",
        "search.lease_seconds=10", f"search.n_trials={trials}", f"search.workers={workers}",
    ]  # fmt: skip


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    environment = {**os.environ, "COMPRESSBENCH_STORE": str(folder / "store")}
    return subprocess.Popen(words, cwd=folder, env=environment)


def workers_of(supervisor: int) -> list[int]:
    """The ids of the living children that are workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == supervisor and b"search.worker" in (path / "cmdline").read_bytes():
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


def disturb(
    process: subprocess.Popen[bytes], folder: Path, every: float, trials: int
) -> Counter[str]:
    """Kill random workers until all trials have ended."""
    chance, counted, killed = random.Random(0), Counter[str](), Counter[int]()
    while process.poll() is None:
        time.sleep(chance.uniform(0.5, 1.5) * every)
        publishing = chance.random() < 0.5 and wait_for_publication(folder)
        alive = workers_of(process.pid)
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
    parser.add_argument("overrides", nargs="*", default=SPACE)
    chosen = parser.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    words = command(chosen.trials, chosen.workers, chosen.overrides)
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


if __name__ == "__main__":
    main()
