"""A small student from a ResNet-20: alone, from outputs, from features, from both; three seeds.

python experiments/distillation_table/study.py --root CIFAR10_FOLDER \
    --checkpoint resnet20.safetensors --validation-rows rows.txt [--processes 2] [--seeds 3]

Each cell is a recipe of train (the checkpoint) and distill, run by the same loop as run.py: what
is in the store already is not computed again, so a stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STAGE = "recipe.stages.distill"
METHODS: dict[str, list[str]] = {
    "alone": [f"loss@{STAGE}.loss=hinton", f"{STAGE}.loss.alpha=0.0"],  # the labels, nothing else
    "KD": [f"loss@{STAGE}.loss=hinton"],
    "DKD": [f"loss@{STAGE}.loss=dkd"],
    "DKD, beta 1": [f"loss@{STAGE}.loss=dkd", f"{STAGE}.loss.beta=1"],
    "FitNets": [f"loss@{STAGE}.loss=fitnets"],
    "AT": [f"loss@{STAGE}.loss=attention"],
    "KD + AT": [f"loss@{STAGE}.loss=mixed"],
    "KD + FitNets": [f"loss@{STAGE}.loss=mixed", f"~{STAGE}.loss.terms.attention",
                     f"+loss@{STAGE}.loss.terms.fitnets=fitnets"],
    "CRD": [f"loss@{STAGE}.loss=crd"],
    "KD + CRD": [f"loss@{STAGE}.loss=mixed", f"~{STAGE}.loss.terms.attention",
                 f"+loss@{STAGE}.loss.terms.crd=crd"],
}  # fmt: skip


def measure(method: str, seed: int, epochs: float, where: Sequence[str]) -> dict[str, Any]:
    """Run one recipe; its row: figures of the exported student."""
    from compressbench.config.compose import compose_config
    from compressbench.config.groups import config_folder
    from compressbench.config.run_config import RunConfig
    from compressbench.engine.executor import run
    from compressbench.engine.prepare import prepare

    student = [f"+stage@{STAGE}=distill", f"+model@{STAGE}.model=resnet20",
               f"{STAGE}.model.depth=8", f"{STAGE}.model.base_width=8"]  # fmt: skip
    fixed = ["recipe=baseline", "model=resnet20", "dataset=cifar10", "trainer=cpu",
             "trainer.threads=1", "name=study", "tracking=none", f"seed={seed}",
             f"{STAGE}.epochs={epochs}", *student]  # fmt: skip
    config = compose_config([*fixed, *METHODS[method], *where], [config_folder()])
    prepared = prepare(RunConfig.of(config))
    *_, last = run(prepared.plan, prepared.context)
    figures = last.measurement.figures
    return {
        "method": method,
        "seed": seed,
        "val_accuracy": figures["val/accuracy"],
        "test_accuracy": figures["test/accuracy"],
        "onnx_bytes": int(figures["size/onnx_bytes"]),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Test accuracy in percent, mean and standard deviation over the seeds, as Markdown."""
    lines = [
        "| method | test accuracy | seeds | over the student alone, seed by seed |",
        "|---|---|---|---|",
    ]
    alone = {r["seed"]: 100 * float(r["test_accuracy"]) for r in rows if r["method"] == "alone"}
    for method in METHODS:
        found = {r["seed"]: 100 * float(r["test_accuracy"]) for r in rows if r["method"] == method}
        if not found:
            continue
        values = list(found.values())
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        gains = ", ".join(f"{found[s] - alone[s]:+.2f}" for s in sorted(found) if s in alone)
        lines.append(
            f"| {method} | {statistics.mean(values):.2f}{spread} | {len(values)} | {gains} |"
        )
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "results.md").write_text(table(rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--validation-rows", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=4 / 3, help="60,000 images by default")
    parser.add_argument("--only", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    where = [
        f"dataset.root={Path(chosen.root).resolve()}",
        f"dataset.validation_rows={Path(chosen.validation_rows).resolve()}",
        f"model.checkpoint={Path(chosen.checkpoint).resolve()}",
    ]
    wanted = list(itertools.product(range(chosen.seeds), chosen.only))
    found: dict[tuple[int, str], dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, mp_context=spawn) as pool:
        waiting = {pool.submit(measure, m, s, chosen.epochs, where): (s, m) for s, m in wanted}
        for number, done in enumerate(as_completed(waiting), 1):
            row = found[waiting[done]] = done.result()
            print(f"{number}/{len(wanted)} {row['method']}, seed {row['seed']}: "
                  f"{100 * row['test_accuracy']:.2f}", flush=True)  # fmt: skip
            write([found[cell] for cell in wanted if cell in found], chosen.out)
    print(table(list(found.values())))


if __name__ == "__main__":
    main()
