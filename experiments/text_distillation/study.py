"""A small encoder of texts from a larger one, then integers: AG News, figures of exported files.

python experiments/text_distillation/study.py --root AG_NEWS_FOLDER [--seeds 1] [--quick]

Each row is the end of a recipe, run by the same loop as run.py: what is in the store already is not
computed again, so a stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
QUICK = ["dataset.vocabulary=4096", "dataset.max_tokens=32", "model.width=64",
         "model.student.width=32"]  # fmt: skip
FOUR = "recipe.stages.quantize.rules=[{type: Embedding, bits: 4}]"
ROWS: dict[str, list[str]] = {
    "teacher": ["recipe=baseline"],
    "student alone": ["recipe=baseline"],  # of the options in model.student
    "student, distilled": ["recipe=distill"],
    "distilled, 8 bits": ["recipe=distill_then_quant"],
    "distilled, 8 bits, embeddings 4": ["recipe=distill_then_quant", FOUR],
}
FIGURES = ("val/accuracy", "test/accuracy", "size/onnx_bytes", "size/download_bytes",
           "compute/macs", "latency/p50_ms", "latency/speedup")  # fmt: skip


def measure(name: str, seed: int, root: Path, epochs: int, quick: bool) -> dict[str, Any]:
    """Run one recipe; the figures of the file that it ends with."""
    from compressbench.config.compose import compose_config
    from compressbench.config.groups import config_folder
    from compressbench.config.run_config import RunConfig
    from compressbench.engine.executor import run
    from compressbench.engine.prepare import prepare

    fits = ["train", *(["distill"] if "recipe=baseline" not in ROWS[name] else [])]
    fixed = ["dataset=ag_news", f"dataset.root={root}", "dataset.test_fraction=0.3",
             "model=text_transformer", "trainer=cpu", "trainer.threads=1", "name=study",
             "tracking=none", f"seed={seed}",
             *(f"recipe.stages.{fit}.epochs={epochs}" for fit in fits)]  # fmt: skip
    config = compose_config([*fixed, *ROWS[name], *(QUICK if quick else [])], [config_folder()])
    if name == "student alone":
        config["model"] |= config["model"]["student"]
    prepared = prepare(RunConfig.of(config))
    *_, last = run(prepared.plan, prepared.context)
    return {"row": name, "seed": seed, **{f: last.measurement.figures[f] for f in FIGURES}}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds as Markdown, accuracies in percent with their standard deviation."""
    lines = [
        "| file | validation | test | onnx | download | MACs | speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        found = [row for row in rows if row["row"] == name]
        if not found:
            continue
        of = {f: [float(row[f]) for row in found] for f in FIGURES}
        accuracies = [_percent(of[f]) for f in FIGURES[:2]]
        sizes = [f"{statistics.mean(of[f]) / 1e3:,.0f} kB" for f in FIGURES[2:4]]
        millions = f"{statistics.mean(of['compute/macs']) / 1e6:.1f} M"
        alone = name == "student alone"  # measured beside itself
        speed = "" if alone else f"{statistics.median(of['latency/speedup']):.1f}×"
        lines.append("| " + " | ".join([name, *accuracies, *sizes, millions, speed]) + " |")
    return "\n".join(lines) + "\n"


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} %"


def write(rows: Sequence[Mapping[str, Any]]) -> None:
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "results.md").write_text(table(rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="models of half the width, 32 tokens")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(chosen.seeds):
        for name in ROWS:
            root = Path(chosen.root).resolve()
            rows.append(measure(name, seed, root, chosen.epochs, chosen.quick))
            print(f"seed {seed}, {name}: test {100 * rows[-1]['test/accuracy']:.2f}", flush=True)
            write(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
