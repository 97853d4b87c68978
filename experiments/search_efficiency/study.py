"""How many trials until 95 % of the hypervolume that random settings end with: TPE and NSGA-II.

python experiments/search_efficiency/study.py [--problem mlp] [--trials 60] [--seeds 5]
    [--processes 2] [--work FOLDER]

The problems: the width of every weight layer of a model trained on the digits, 2 to 8 bits: ten
layers of a residual CNN, or five of an MLP and one width of its activations, 4 to 8. Figures are
those of the exported file, as in any sweep. All sweeps share one store, so that equal settings are
computed once, and a stopped study goes on where it was. Hypervolume as in `front/hypervolume`: area
under 100 max(accuracy - floor, 0) over log2(float bytes / download bytes), the floor 0.20 below the
float model.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from compressbench.results import pareto
from compressbench.results.pareto import FLOOR_BELOW_BASELINE

if TYPE_CHECKING:
    from compressbench.search.result import Result
    from compressbench.search.spec import Spec

HERE = Path(__file__).parent
SAMPLERS = ("random", "tpe", "nsgaii")
STAGE = "recipe.stages.quantize"
BLOCKS = [f"blocks.{i}.0.{half}.0" for i in range(3) for half in ("first", "second")]
LAYERS = {
    "small_cnn": [*(f"entries.{i}.0" for i in range(3)), *BLOCKS, "classifier"],
    "mlp": [f"layers.{2 * i + 1}" for i in range(5)],
}
OPTIONS = {
    "small_cnn": [f"{STAGE}.activation=null"],
    "mlp": ["model.hidden=[64,48,32,24]"],
}
SHARE = 0.95
Point = tuple[float, float]  # accuracy, bytes


def fixed(problem: str) -> list[str]:
    rules = ",".join(f"{{layers: {name}, bits: 8}}" for name in LAYERS[problem])
    return ["recipe=quantize", f"model={problem}", *OPTIONS[problem], "trainer=cpu",
            "trainer.threads=1", "tracking=none", "recipe.stages.train.epochs=10",
            f"{STAGE}.rules=[{rules}]"]  # fmt: skip


def space(problem: str) -> list[str]:
    layers = range(len(LAYERS[problem]))
    widths = [f"{STAGE}.rules.{position}.bits=range(2,9)" for position in layers]
    return widths + [f"{STAGE}.activation_bits=range(4,9)"] * (problem == "mlp")


def hypervolume(points: Sequence[Point], accuracy: float, size: float) -> float:
    """Area that the points dominate; `accuracy` and `size` are the float model's."""
    return pareto.front_hypervolume(
        [a for a, _ in points], [b for _, b in points], size, accuracy - FLOOR_BELOW_BASELINE
    )


def make_spec(problem: str, sampler: str, seed: int, trials: int, folder: str) -> Spec:
    from compressbench.config.compose import compose_config
    from compressbench.config.groups import config_folder
    from compressbench.results.sweep import Objective
    from compressbench.search.space import parse
    from compressbench.search.spec import Spec

    conf = (config_folder(),)
    config = compose_config([*fixed(problem), f"sampler@search.sampler={sampler}"], conf)
    objectives = (Objective("val/accuracy", "maximize"),
                  Objective("size/download_bytes", "minimize"))  # fmt: skip
    return Spec(
        name=f"{sampler}-{seed}", folder=str(Path(folder, f"{sampler}-{seed}")), storage=None,
        tag="", command=[], metric="accuracy", validation_rows=1, objectives=objectives,
        constraints=(), space=tuple(parse(space(problem), conf)[0]), fixed=tuple(fixed(problem)),
        conf=tuple(map(str, conf)), sampler=config["search"]["sampler"], starts=(),
        n_trials=trials, seed=seed, seeds=1, early_stop=False, lease_seconds=30.0,
    )  # fmt: skip


def sweep(
    problem: str, sampler: str, seed: int, trials: int, folder: str
) -> tuple[str, int, list[Point], Point]:
    """One sweep, one trial after the other: (sampler, seed, its points in order, the float's)."""
    from compressbench.search.storage import open_storage
    from compressbench.search.worker import perform, use_sampler
    from compressbench.search.worker_loop import work
    from compressbench.store.processes import process_token

    spec = make_spec(problem, sampler, seed, trials, folder)
    storage = open_storage(spec.home, None, spec.name, 30.0, objectives=spec.objectives)
    use_sampler(storage, spec, 0)
    work(storage, spec, process_token(), lambda t, lease: perform(storage, spec, t, lease))
    results = [r for _, r in sorted(storage.results().items())]
    points = [_point(r) for r in results]
    first = next(r.baseline for r in results if r.state == "complete")
    return sampler, seed, points, (first["val/accuracy"], first["size/onnx_bytes"])


def _point(result: Result) -> Point:
    """Of a trial; one whose file was refused (few images, few bits: they disagree) has none."""
    if result.state != "complete":
        return 0.0, 1.0
    return result.figures["val/accuracy"], result.figures["size/download_bytes"]


def needed(points: Sequence[Point], baseline: Point, bar: float) -> int | None:
    """Trials until the hypervolume `bar` is reached."""
    for count in range(1, len(points) + 1):
        if hypervolume(points[:count], *baseline) >= bar:
            return count
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problem", choices=list(LAYERS), default="mlp")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("search_efficiency"))
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    os.environ["COMPRESSBENCH_STORE"] = str((chosen.work / "store").resolve())
    folder = str((chosen.work / f"{chosen.problem}-{chosen.trials}").resolve())
    found: dict[tuple[str, int], list[Point]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, mp_context=spawn) as pool:
        waiting = [pool.submit(sweep, chosen.problem, name, seed, chosen.trials, folder)
                   for seed in range(chosen.seeds) for name in SAMPLERS]  # fmt: skip
        for done in as_completed(waiting):
            name, seed, points, baseline = done.result()
            found[name, seed] = points
            print(f"{name}, seed {seed}: {hypervolume(points, *baseline):.1f} after "
                  f"{len(points)} trials", flush=True)  # fmt: skip
    ends = {key: hypervolume(points, *baseline) for key, points in found.items()}
    bar = SHARE * statistics.median(v for (name, _), v in ends.items() if name == "random")
    rows = []
    for name in SAMPLERS:
        counts = [needed(found[name, seed], baseline, bar) for seed in range(chosen.seeds)]
        median = statistics.median(c if c is not None else chosen.trials + 1 for c in counts)
        shown = f"{median:g}" if median <= chosen.trials else f"more than {chosen.trials}"
        end = statistics.median(ends[name, seed] for seed in range(chosen.seeds))
        rows.append({"sampler": name, "median": shown, "end": f"{end:.1f}",
                     "each": " ".join(str(c or "-") for c in counts)})  # fmt: skip
        print(f"{name}: {bar:.1f} after {shown} trials (each: {rows[-1]['each']}), "
              f"{end:.1f} at the end")  # fmt: skip
    with (chosen.work / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
