"""Accuracy against bits of one checkpoint: every granularity, every rounding, from real files.

python experiments/low_bit_curve/study.py --root CIFAR10_FOLDER --checkpoint resnet20.safetensors \
    --validation-rows rows.txt [--processes 2] [--only nearest gptq]

Each setting is a recipe of train (the checkpoint) and quantize, run by the same loop as run.py:
what is in the store already is not computed again, so a stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BITS = (8, 6, 5, 4, 3, 2)
GRANULARITIES = ("tensor", "channel", "group")
ROUNDINGS = ("nearest, min-max", "nearest", "gptq", "adaround", "brecq")
GROUP = 4  # input channels; 36 weights of a 3x3 convolution share a scale
ALL, ENDS = "all layers", "ends at 8 bits"
STAGE = "recipe.stages.quantize"


@dataclass(frozen=True)
class Setting:
    """One row of the table. `layers` says whether first and last have the same bits as the rest."""

    rounding: str
    granularity: str
    bits: int
    layers: str

    def overrides(self) -> list[str]:
        if self.rounding == "codebook":
            stage = "recipe.stages.codebook"
            return ["recipe=codebook", f"{stage}.bits={self.bits}", f"{stage}.rules=[]",
                    f"{stage}.batchnorm=measure"]  # fmt: skip
        if self.rounding.startswith("lsq"):
            stage = "recipe.stages.qat"
            found = ["recipe=qat", f"{stage}.bits={self.bits}", f"{stage}.activation=null",
                     f"{stage}.epochs=0.25", f"{stage}.optimizer.lr=0.01",
                     "dataset.crop_padding=0"]  # fmt: skip
            teacher = [f"+loss@{stage}.loss=hinton", f"{stage}.teacher=train"]
            return found + (teacher if "teacher" in self.rounding else [])
        method = self.rounding.partition(",")[0]
        found = [
            "recipe=quantize",
            f"quantizer@{STAGE}.weight={method}",
            f"{STAGE}.activation=null",
            f"{STAGE}.bits={self.bits}",
            f"{STAGE}.granularity={self.granularity}",
            f"{STAGE}.batchnorm=measure",
        ]
        ranges = "minmax" if "min-max" in self.rounding else "mse"
        found.append(f"quantizer@{STAGE}.weight.ranges={ranges}")
        rules = []
        if self.granularity == "group":
            found.append(f"{STAGE}.group_size={GROUP}")
            rules.append("{layers: first, granularity: channel}")  # of three input channels
        if self.layers == ALL:
            found.append(f"{STAGE}.rules=[{','.join(rules)}]")
        return found


def settings() -> Iterator[Setting]:
    """The grid of the table and codebooks; first and last at 8 bits; a quarter epoch of LSQ."""
    for rounding, granularity, bits in itertools.product(ROUNDINGS, GRANULARITIES, BITS):
        yield Setting(rounding, granularity, bits, ALL)
    for bits in BITS:
        yield Setting("codebook", "tensor", bits, ALL)
    for rounding, bits in itertools.product(ROUNDINGS[1:], (3, 2)):
        yield Setting(rounding, "channel", bits, ENDS)
    for rounding, bits in itertools.product(("lsq", "lsq, teacher"), (8, 3, 2)):
        yield Setting(rounding, "channel", bits, ENDS)  # 8 bits are the control


def measure(setting: Setting, where: Sequence[str]) -> dict[str, Any]:
    """Run one recipe; its row: figures of the exported file, and seconds of the stage."""
    from compressbench.config.compose import compose_config
    from compressbench.config.groups import config_folder
    from compressbench.config.run_config import RunConfig
    from compressbench.engine.executor import run
    from compressbench.engine.prepare import prepare

    fixed = ["model=resnet20", "dataset=cifar10", "trainer=cpu", "trainer.threads=1", "name=study"]
    overrides = [*fixed, "tracking=none", *where, *setting.overrides()]
    config = compose_config(overrides, [config_folder()])
    prepared = prepare(RunConfig.of(config))
    baseline, last = run(prepared.plan, prepared.context)
    figures = last.measurement.figures
    return {
        **asdict(setting),
        "val_accuracy": figures["val/accuracy"],
        "test_accuracy": figures["test/accuracy"],
        "agreement": figures["val/agreement"],
        "onnx_bytes": int(figures["size/onnx_bytes"]),
        "download_bytes": int(figures["size/download_bytes"]),
        "theoretical_bytes": int(figures["size/theoretical_bits"]) // 8,
        "float_test_accuracy": baseline.measurement.figures["test/accuracy"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Test accuracy in percent as Markdown: one line a method, one column a width."""
    lines = ["| rounding | scales | layers | " + " | ".join(f"{b} bit" for b in BITS) + " |"]
    lines.append("|---|---|---|" + "---|" * len(BITS))
    for key, group in itertools.groupby(rows, lambda r: (r["rounding"], r["granularity"],
                                                         r["layers"])):  # fmt: skip
        by_bits = {int(row["bits"]): 100 * float(row["test_accuracy"]) for row in group}
        cells = [f"{by_bits[b]:.2f}" if b in by_bits else "" for b in BITS]
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Test accuracy against bits, one panel a granularity, one line a rounding."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), sharey=True)
    for axis, granularity in zip(axes, GRANULARITIES, strict=True):
        for rounding in (*ROUNDINGS, "codebook"):
            line = [r for r in rows if (r["rounding"], r["granularity"], r["layers"])
                    == (rounding, granularity, ALL)]  # fmt: skip
            axis.plot([int(r["bits"]) for r in line],
                      [100 * float(r["test_accuracy"]) for r in line],
                      marker="o", markersize=4, label=rounding)  # fmt: skip
        axis.set(title=f"one scale per {granularity}", xlabel="bits of a weight", xticks=BITS)
        axis.grid(alpha=0.3)
        if rows:
            axis.axhline(100 * float(rows[0]["float_test_accuracy"]), color="grey", ls=":")
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def write(rows: Sequence[Mapping[str, Any]]) -> None:
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "results.md").write_text(table(rows), encoding="utf-8")
    picture(rows, HERE / "accuracy_bits.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--validation-rows", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="roundings to run; all by default")
    chosen = parser.parse_args()
    where = [
        f"dataset.root={Path(chosen.root).resolve()}",
        f"dataset.validation_rows={Path(chosen.validation_rows).resolve()}",
        f"model.checkpoint={Path(chosen.checkpoint).resolve()}",
    ]
    wanted = [s for s in settings() if not chosen.only or s.rounding in chosen.only]
    found: dict[Setting, dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, mp_context=spawn) as pool:
        per_channel_first = sorted(wanted, key=lambda s: s.granularity != "channel")
        waiting = {pool.submit(measure, setting, where): setting for setting in per_channel_first}
        for number, done in enumerate(as_completed(waiting), 1):
            row = found[waiting[done]] = done.result()
            print(f"{number}/{len(wanted)} {row['rounding']}, {row['granularity']}, "
                  f"{row['bits']} bits, {row['layers']}: {100 * row['test_accuracy']:.2f}",
                  flush=True)  # fmt: skip
            rows = [found[s] for s in wanted if s in found]
            write(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
