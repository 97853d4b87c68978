"""A 40-trial sweep on digits: no stage twice, and the wall time against its stages' seconds.

python experiments/sweep_overhead/forty.py [--workers 2] [--work FOLDER] [-- OVERRIDE ...]

Sparsity x bits x calibration as a grid, from an empty store. Counts the stages that ran (those
that were no hit, exports and measurements included) against the distinct ones, and compares the
wall time with 1.15 x (sum of the distinct stages' seconds / workers + the longest) + 15 s.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
GRID = [
    "recipe=prune_then_quant",
    "recipe.stages.prune.sparsity=choice(0.4,0.6,0.8,0.9,0.95)",
    "recipe.stages.quantize.bits=choice(3,4,6,8)",
    "quantizer@recipe.stages.quantize.activation=choice(minmax,mse)",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("forty"))
    parser.add_argument("overrides", nargs="*", help="more of them, such as fewer epochs")
    chosen = parser.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    chosen.work.mkdir(parents=True)
    words = [sys.executable, str(ROOT / "run.py"), "-m", *GRID, "tracking=none",
             "sampler@search.sampler=grid", "search.name=forty", "search.early_stop=false",
             f"search.workers={chosen.workers}", *chosen.overrides]  # fmt: skip
    environment = {**os.environ, "COMPRESSBENCH_STORE": str((chosen.work / "store").resolve())}
    began = time.monotonic()
    subprocess.run(words, cwd=chosen.work, env=environment, check=True)
    wall = time.monotonic() - began
    reports = [json.loads(p.read_text())
               for p in chosen.work.glob("sweeps/forty/trials/*/report.json")]  # fmt: skip
    stages = [stage for report in reports for stage in report["stages"]]
    ran = [stage for stage in stages if not stage["hit"]]
    keys = {stage["key"] for stage in stages}
    seconds = [stage["seconds"] for stage in ran]
    bound = 1.15 * (sum(seconds) / chosen.workers + max(seconds)) + 15
    print(f"{len(reports)} trials, {len(stages)} stages asked for, {len(keys)} distinct, "
          f"{len(ran)} ran")  # fmt: skip
    print(f"{wall:.0f} s; bound {bound:.0f} s (stages {sum(seconds):.0f} s, "
          f"longest {max(seconds):.0f} s)")  # fmt: skip
    assert len(ran) == len(keys), "a stage ran twice"


if __name__ == "__main__":
    main()
