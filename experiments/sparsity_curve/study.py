"""Accuracy against sparsity of one checkpoint: criteria, budgets and controls, from real files.

python experiments/sparsity_curve/study.py --root CIFAR10_FOLDER --checkpoint resnet20.safetensors \
    --validation-rows rows.txt [--processes 2] [--only random wanda] [--sparsities 0.8] \
    [--seeds 1] [--finetune no]

Each setting is a recipe of train (the checkpoint), prune and, for half of them, a quarter epoch of
finetuning, run by the same loop as run.py: what is in the store already is not computed again, so
a stopped study goes on where it was. The controls, random weights and magnitude with the same
share of each layer, always run.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SPARSITIES = (0.8, 0.7, 0.6, 0.9, 0.5, 0.95, 0.97)  # in the order in which they run
STAGE = "recipe.stages.prune"
CONTROLS = ("random", "magnitude, layer")
METHODS = {
    "random": ("random", "global"),
    "magnitude, layer": ("magnitude", "layer"),
    "magnitude": ("magnitude", "global"),
    "wanda, layer": ("wanda", "layer"),
    "sparsegpt, layer": ("sparsegpt", "layer"),
    "magnitude, lamp": ("magnitude", "lamp"),
    "magnitude, erk": ("magnitude", "erk"),
    "magnitude, sensitivity": ("magnitude", "sensitivity"),
    "sparsegpt, lamp": ("sparsegpt", "lamp"),
    "taylor": ("taylor", "global"),
    "snip": ("snip", "global"),
    "wanda": ("wanda", "global"),
    "sparsegpt": ("sparsegpt", "global"),
    "mixed": ("mixed", "global"),
    "mean activation": ("mean_activation", "global"),
}


@dataclass(frozen=True)
class Setting:
    """One run; `finetune` says whether a quarter epoch follows."""

    method: str
    sparsity: float
    finetune: bool
    seed: int

    def overrides(self) -> list[str]:
        criterion, scope = METHODS[self.method]
        found = [
            "recipe=prune", f"seed={self.seed}", f"{STAGE}.sparsity={self.sparsity}",
            f"{STAGE}.scope={scope}", f"criterion@{STAGE}.criterion={criterion}",
            f"{STAGE}.batchnorm=measure",
        ]  # fmt: skip
        finetune = "recipe.stages.finetune"
        return [*found, f"{finetune}.epochs=0.25" if self.finetune else f"~{finetune}"]


def settings(
    finetune: Sequence[bool], sparsities: Sequence[float], seeds: int
) -> Iterator[Setting]:
    """The whole grid, the first seed of every method before the second."""
    for tuned, seed, sparsity, method in itertools.product(
        finetune, range(seeds), sparsities, METHODS
    ):
        yield Setting(method, sparsity, tuned, seed)


def measure(setting: Setting, where: Sequence[str]) -> dict[str, Any]:
    """Run one recipe; its row: figures of the exported file."""
    from compressbench.config.compose import compose_config
    from compressbench.config.groups import config_folder
    from compressbench.config.run_config import RunConfig
    from compressbench.engine.executor import run
    from compressbench.engine.prepare import prepare

    fixed = ["model=resnet20", "dataset=cifar10", "trainer=cpu", "trainer.threads=1", "name=study"]
    overrides = [*fixed, "tracking=none", *where, *setting.overrides()]
    config = compose_config(overrides, [config_folder()])
    prepared = prepare(RunConfig.of(config))
    baseline, *_, last = run(prepared.plan, prepared.context)
    figures, first = last.measurement.figures, baseline.measurement.figures
    return {
        **asdict(setting),
        "val_accuracy": figures["val/accuracy"],
        "test_accuracy": figures["test/accuracy"],
        "download_bytes": int(figures["size/download_bytes"]),
        "download_share": figures["size/download_bytes"] / first["size/download_bytes"],
        "onnx_bytes": int(figures["size/onnx_bytes"]),
        "nonzero": int(figures["size/nonzero"]),
        "float_test_accuracy": first["test/accuracy"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Test accuracy in percent as Markdown, mean and half the range over seeds; an asterisk marks
    what does not beat both controls of the same sparsity.
    """
    columns = sorted({float(row["sparsity"]) for row in rows})
    lines = []
    for tuned in (False, True):
        cells = grouped([row for row in rows if _true(row["finetune"]) == tuned])
        if not cells:
            continue
        lines.append(f"\n{'After a quarter epoch' if tuned else 'One shot'}:\n")
        lines.append("| method | " + " | ".join(f"{s:.0%}" for s in columns) + " |")
        lines.append("|---|" + "---|" * len(columns))
        for method in METHODS:
            if any((method, s) in cells for s in columns):
                texts = [_cell(cells, method, s) for s in columns]
                lines.append("| " + " | ".join([method, *texts]) + " |")
    return "\n".join(lines) + "\n"


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float], list[float]]:
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        key = (str(row["method"]), float(row["sparsity"]))
        found.setdefault(key, []).append(100 * float(row["test_accuracy"]))
    return found


def _cell(cells: Mapping[tuple[str, float], list[float]], method: str, sparsity: float) -> str:
    values = cells.get((method, sparsity))
    if not values:
        return ""
    mean = statistics.mean(values)
    controls = [statistics.mean(cells[c, sparsity]) for c in CONTROLS if (c, sparsity) in cells]
    losing = method not in CONTROLS and any(mean <= control for control in controls)
    spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{mean:.2f}{spread}{'*' if losing else ''}"


def _true(value: Any) -> bool:
    return str(value) == "True"


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Test accuracy against sparsity, one panel without and one with finetuning."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    for axis, tuned in zip(axes, (False, True), strict=True):
        cells = grouped([row for row in rows if _true(row["finetune"]) == tuned])
        for number, method in enumerate(METHODS):
            points = sorted((s, statistics.mean(v)) for (m, s), v in cells.items() if m == method)
            if not points:
                continue
            style = {"color": f"C{number % 10}", "ls": "--" if number > 11 else "-"}
            if method in CONTROLS:
                style = {"color": "black", "ls": ":" if method == "random" else "--"}
            axis.plot([100 * s for s, _ in points], [a for _, a in points], marker="o",
                      markersize=4, label=method, **style)  # fmt: skip
        axis.set(title="after a quarter epoch" if tuned else "one shot", xlabel="weights zero, %")
        axis.grid(alpha=0.3)
        if rows:
            axis.axhline(100 * float(rows[0]["float_test_accuracy"]), color="grey", ls=":")
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(fontsize=7, loc="center left", framealpha=0.5)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def write(rows: Sequence[Mapping[str, Any]]) -> None:
    """Those rows, and what earlier calls have left of other settings: CSV, table, picture."""
    path = HERE / "results.csv"
    kept = {_key(row): row for row in csv.DictReader(path.open())} if path.exists() else {}
    merged = list((kept | {_key(row): row for row in rows}).values())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(merged)
    (HERE / "results.md").write_text(table(merged), encoding="utf-8")
    picture(merged, HERE / "accuracy_sparsity.png")


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[field.name]) for field in fields(Setting))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--validation-rows", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=METHODS, help="besides the controls")
    parser.add_argument("--sparsities", nargs="*", type=float, default=SPARSITIES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--finetune", choices=("yes", "no", "both"), default="both")
    chosen = parser.parse_args()
    where = [
        f"dataset.root={Path(chosen.root).resolve()}",
        f"dataset.validation_rows={Path(chosen.validation_rows).resolve()}",
        f"model.checkpoint={Path(chosen.checkpoint).resolve()}",
    ]
    tuned = {"yes": [True], "no": [False], "both": [False, True]}[chosen.finetune]
    grid = list(settings(tuned, chosen.sparsities, chosen.seeds))
    wanted = [s for s in grid if not chosen.only or s.method in (*CONTROLS, *chosen.only)]
    found: dict[Setting, dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, mp_context=spawn) as pool:
        waiting = {pool.submit(measure, setting, where): setting for setting in wanted}
        for number, done in enumerate(as_completed(waiting), 1):
            row = found[waiting[done]] = done.result()
            print(f"{number}/{len(wanted)} {row['method']}, {row['sparsity']:.0%}, seed "
                  f"{row['seed']}: {100 * row['test_accuracy']:.2f}", flush=True)  # fmt: skip
            write([found[s] for s in wanted if s in found])
    print(table([found[s] for s in wanted]))


if __name__ == "__main__":
    main()
