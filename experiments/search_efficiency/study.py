"""How many trials until 95 % of the final hypervolume: TPE and NSGA-II against random settings.

python experiments/search_efficiency/study.py [--trials 60] [--seeds 5] [--processes 2]
    [--work FOLDER]

The problem: the width of every layer of a trained MLP on the digits, 2 to 8 bits, and of its
activations, 4 to 8; figures are those of the exported file, as in any sweep. All sweeps share one
store, so that equal settings are computed once, and a stopped study goes on where it was.
Hypervolume: area under 100 max(accuracy - floor, 0) over log2(float bytes / download bytes), the
floor 0.20 below the float model. The final one is that of all trials of all sweeps together.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compressbench.search.result import Result
    from compressbench.search.spec import Spec

HERE = Path(__file__).parent
SAMPLERS = ("random", "tpe", "nsgaii")
STAGE = "recipe.stages.quantize"
HIDDEN = (64, 48, 32, 24)
LAYERS = [f"layers.{2 * i + 1}" for i in range(len(HIDDEN) + 1)]
RULES = ",".join(f"{{layers: {name}, bits: 8}}" for name in LAYERS)
FIXED = ["recipe=quantize", "model=mlp", f"model.hidden={list(HIDDEN)}", "trainer=cpu",
         "trainer.threads=1", "tracking=none", "recipe.stages.train.epochs=10",
         f"{STAGE}.rules=[{RULES}]"]  # fmt: skip
SHARE = 0.95
Point = tuple[float, float]  # accuracy, bytes


def space() -> list[str]:
    widths = [f"{STAGE}.rules.{position}.bits=range(2,9)" for position in range(len(LAYERS))]
    return [*widths, f"{STAGE}.activation_bits=range(4,9)"]


def hypervolume(points: Sequence[Point], accuracy: float, size: float) -> float:
    """Area that the points dominate; `accuracy` and `size` are the float model's."""
    gains = [(log2(size / b), 100 * max(a - (accuracy - 0.20), 0.0)) for a, b in points]
    area, reached = 0.0, 0.0
    for halvings, quality in sorted(gains, reverse=True):  # smallest files first
        if halvings > 0 and quality > reached:
            area += halvings * (quality - reached)
            reached = quality
    return area


def make_spec(sampler: str, seed: int, trials: int, folder: str) -> Spec:
    from compressbench.groups import config_folder
    from compressbench.search.compose import compose_config
    from compressbench.search.space import parse
    from compressbench.search.spec import Spec
    from compressbench.trials import Objective

    conf = (config_folder(),)
    config = compose_config([*FIXED, f"sampler@search.sampler={sampler}"], conf)
    objectives = (Objective("val/accuracy", "maximize"),
                  Objective("size/download_bytes", "minimize"))  # fmt: skip
    return Spec(
        name=f"{sampler}-{seed}", folder=str(Path(folder, f"{sampler}-{seed}")), storage=None,
        tag="", command=[], metric="accuracy", validation_rows=1, objectives=objectives,
        constraints=(), space=tuple(parse(space(), conf)[0]), fixed=tuple(FIXED),
        conf=tuple(map(str, conf)), sampler=config["search"]["sampler"], starts=(),
        n_trials=trials, seed=seed, seeds=1, early_stop=False, lease_seconds=30.0,
    )  # fmt: skip


def sweep(sampler: str, seed: int, trials: int, folder: str) -> tuple[str, int, list[Point], Point]:
    """One sweep, one trial after the other: (sampler, seed, its points in order, the float's)."""
    from compressbench.search.desk import open_desk
    from compressbench.search.loop import work
    from compressbench.search.worker import perform, use_sampler
    from compressbench.store.processes import process_token

    spec = make_spec(sampler, seed, trials, folder)
    desk = open_desk(spec.home, None, spec.name, 30.0, objectives=spec.objectives)
    use_sampler(desk, spec, 0)
    work(desk, spec, process_token(), lambda t, lease: perform(desk, spec, t, lease))
    results = [r for _, r in sorted(desk.results().items())]
    points = [_point(r) for r in results]
    first = results[0].baseline
    return sampler, seed, points, (first["val/accuracy"], first["size/onnx_bytes"])


def _point(result: Result) -> Point:
    """Of a trial; one whose file was refused (few images, few bits: they disagree) has none."""
    if result.state != "complete":
        return 0.0, 1.0
    return result.figures["val/accuracy"], result.figures["size/download_bytes"]


def needed(points: Sequence[Point], baseline: Point, final: float) -> int | None:
    """Trials until the share of the final hypervolume is reached."""
    for count in range(1, len(points) + 1):
        if hypervolume(points[:count], *baseline) >= SHARE * final:
            return count
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("search_efficiency"))
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    os.environ["COMPRESSBENCH_STORE"] = str((chosen.work / "store").resolve())
    folder = str((chosen.work / f"sweeps-{chosen.trials}").resolve())
    found: dict[tuple[str, int], list[Point]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, mp_context=spawn) as pool:
        waiting = [pool.submit(sweep, name, seed, chosen.trials, folder)
                   for seed in range(chosen.seeds) for name in SAMPLERS]  # fmt: skip
        for done in as_completed(waiting):
            name, seed, points, baseline = done.result()
            found[name, seed] = points
            print(f"{name}, seed {seed}: {hypervolume(points, *baseline):.1f} after "
                  f"{len(points)} trials", flush=True)  # fmt: skip
    final = hypervolume([p for points in found.values() for p in points], *baseline)
    rows = []
    for name in SAMPLERS:
        counts = [needed(found[name, seed], baseline, final) for seed in range(chosen.seeds)]
        median = statistics.median(c if c is not None else chosen.trials + 1 for c in counts)
        shown = f"{median:g}" if median <= chosen.trials else f"more than {chosen.trials}"
        rows.append({"sampler": name, "median": shown,
                     "each": " ".join(str(c or "-") for c in counts)})  # fmt: skip
        print(f"{name}: {SHARE:.0%} of {final:.1f} after {shown} trials (each: {rows[-1]['each']})")
    with (chosen.work / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
