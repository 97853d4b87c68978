"""Channels removed to 2x and 4x fewer multiply-accumulates: our criteria and Torch-Pruning's own.

python experiments/channel_pruning/study.py --root CIFAR10_FOLDER --model resnet20 \
    --checkpoint resnet20.safetensors --validation-rows rows.txt [--processes 2] [--seeds 3]

Each of our settings is a recipe of train (the checkpoint), prune and finetune, run by the same loop
as run.py: what is in the store already is not computed again. Torch-Pruning removes channels from
the same model with its own pruner and importances, in multiples of 8, the classifier left alone,
at the ratio that comes next to the limit; then comes the same finetune with the same seeds and
the same export and measurement; so do the widths that ModelOpt's FastNAS finds, where it is
installed. The controls, random channels and the same share of each layer by norm, always run.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STAGE = "recipe.stages.prune"
TARGETS = ("2x", "4x")
CONTROLS = ("random", "l2, layer")
FASTNAS = "ModelOpt FastNAS"
RATIOS = [step / 64 for step in range(8, 61)]  # that Torch-Pruning is tried with
SCORED, NORMALIZED = 1000, 512  # images by which FastNAS judges widths, and measures BatchNorm
OURS = {
    "random": ["criterion@{}.criterion=random", "{}.criterion.unit=channel", "{}.scope=global"],
    "l2, layer": ["criterion@{}.criterion=l2", "{}.scope=layer"],
    "l2": ["criterion@{}.criterion=l2", "{}.scope=global"],
    "taylor": ["criterion@{}.criterion=taylor", "{}.scope=global"],
    "batchnorm scale": ["criterion@{}.criterion=batchnorm_scale", "{}.scope=global"],
    "apoz": ["criterion@{}.criterion=apoz", "{}.scope=global"],
    "mixed": ["criterion@{}.criterion=mixed", "{}.scope=global"],
    "taylor, steps of 4": ["criterion@{}.criterion=taylor", "{}.scope=global", "{}.round_to=4"],
    "taylor, inner, measured, steps of 4": [
        "criterion@{}.criterion=taylor", "{}.scope=sensitivity", "{}.round_to=4",
        "{}.coupled=false",
    ],
}  # fmt: skip
RATIO = "{}.max_layer_sparsity=0.75"  # of our global rankings: no stage is gutted
THEIRS = {
    "Torch-Pruning magnitude": "GroupMagnitudeImportance",
    "Torch-Pruning Taylor": "GroupTaylorImportance",
    "Torch-Pruning BatchNorm": "BNScaleImportance",
    "Torch-Pruning random": "RandomImportance",
}


@dataclass(frozen=True)
class Setting:
    """One run: a model, a way to choose channels, the factor of fewer multiply-accumulates."""

    model: str
    method: str
    target: str
    seed: int
    epochs: float

    def overrides(self) -> list[str]:
        chosen = OURS.get(self.method, OURS["l2"])
        limits = [f"{STAGE}.sparsity=null", f"{STAGE}.macs={self.target}", f"seed={self.seed}",
                  f"{STAGE}.batchnorm=measure"]  # fmt: skip
        ratio = [RATIO] if "scope=global" in " ".join(chosen) else []
        return [
            "recipe=prune_channels", f"recipe.stages.finetune.epochs={self.epochs}", *limits,
            *(text.format(STAGE) for text in [*chosen, *ratio]),
        ]  # fmt: skip


def settings(model: str, seeds: int, targets: Sequence[str], epochs: float) -> Iterator[Setting]:
    methods = (*OURS, *THEIRS, FASTNAS)
    for seed, target, method in itertools.product(range(seeds), targets, methods):
        yield Setting(model, method, target, seed, epochs)


def measure(setting: Setting, where: Sequence[str]) -> dict[str, Any]:
    """Run one setting; its row: figures of the exported file."""
    from compressbench.config.compose import compose_config
    from compressbench.config.groups import config_folder
    from compressbench.config.run_config import RunConfig
    from compressbench.engine.executor import run
    from compressbench.engine.prepare import prepare

    fixed = ["dataset=cifar10", "trainer=cpu", "trainer.threads=1", "tracking=none",
             "name=study"]  # fmt: skip
    config = compose_config([*fixed, *where, *setting.overrides()], [config_folder()])
    prepared = prepare(RunConfig.of(config))
    plan, run_context = prepared.plan, prepared.context
    if setting.method in OURS:
        first, *_, last = run(plan, run_context)
        figures = dict(last.measurement.figures)
    else:
        first = next(run(plan[:1], run_context))
        figures = theirs(setting, first, plan[-1], run_context)
    return {
        **asdict(setting),
        "test_accuracy": figures["test/accuracy"],
        "val_accuracy": figures["val/accuracy"],
        "macs": int(figures["compute/macs"]),
        "params": int(figures["size/params"]),
        "onnx_bytes": int(figures["size/onnx_bytes"]),
        "speedup": figures["latency/speedup"],
        "float_test_accuracy": first.measurement.figures["test/accuracy"],
        "float_macs": int(first.measurement.figures["compute/macs"]),
    }


def theirs(setting: Setting, first: Any, finetune: Any, run_context: Any) -> dict[str, Any]:
    """Another library on the model of the first step, then finetune and measurement as ours."""
    from compressbench.export.onnx import export_onnx
    from compressbench.measure.figures import measure_model, test_figures
    from compressbench.training.batchnorm import reestimate_batchnorm_

    with tempfile.TemporaryDirectory() as folder:
        context = run_context.context(finetune.job, Path(folder))
        model = first.artifact.model
        if setting.method == FASTNAS:
            small = fastnas(model, setting, context, run_context)
        else:
            small = torch_pruned(model, setting, context, _example(run_context))
        reestimate_batchnorm_(small, context, 1024)
        pruned = replace(first.artifact, model=small.eval(), key="")
        tuned = finetune.stage.run({"model": pruned}, context).artifact
        file = Path(folder) / "model.onnx"
        export_onnx(tuned, run_context.data, file, run_context.opset)
        reference, data = first.files / "model.onnx", run_context.data
        measured = measure_model(tuned, file, reference, data, threads=1).figures
        return {**measured, **test_figures(file, reference, data, threads=1)}


def torch_pruned(model: Any, setting: Setting, context: Any, example: Any) -> Any:
    """What Torch-Pruning leaves at the ratio that uses most of the limit: in multiples of 8, or of
    less where these do not reach it. More is not always removed at a larger ratio: it leaves
    layers whole of which none would stay.
    """
    from torch.nn import functional as F

    from compressbench.data.calibration import training_batches
    from compressbench.pruning.channels.limits import macs

    allowed = macs(model, example) / float(setting.target[:-1])
    source = deepcopy(model).eval().requires_grad_(True)
    if "Taylor" in setting.method:
        for inputs, targets in training_batches(context, 1024, 128):
            F.cross_entropy(source(inputs), targets).backward()
    for step in (8, 4, 1):
        tried = [cut(source, setting, ratio, step, example) for ratio in RATIOS]
        fitting = [small for small in tried if macs(small, example) <= allowed]
        if fitting:
            return max(fitting, key=lambda small: macs(small, example))
    raise SystemExit(f"{setting.method} does not reach {setting.target}")


def fastnas(model: Any, setting: Setting, context: Any, run_context: Any) -> Any:
    """A copy of `model` with the widths, multiples of 8, that FastNAS finds for the limit."""
    import modelopt.torch.prune as mtp
    import torch

    from compressbench.core.memory_format import reordered
    from compressbench.data.calibration import training_batches

    split = run_context.data.split("validation")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    batches = [(reordered(run_context.data.prepare(split.inputs[r])), split.targets[r])
               for r in order[:SCORED].split(250)]  # fmt: skip

    @torch.no_grad()
    def score(candidate: Any) -> float:
        candidate.eval()
        return float(sum((candidate(x).argmax(1) == y).sum() for x, y in batches)) / SCORED

    widths = {"nn.Conv2d": {"*": {"channel_divisor": 8}}} | {
        kind: {"*": {"feature_divisor": 8}} for kind in ("nn.BatchNorm2d", "nn.Linear")
    }
    train = training_batches(replace(context, seed=0), NORMALIZED, 128)
    small, _ = mtp.prune(
        deepcopy(model),
        mode=[("fastnas", widths)],
        constraints={"flops": f"{100 / float(setting.target[:-1]):.2f}%"},
        dummy_input=_example(run_context)[:1],
        config={
            "data_loader": [(reordered(x), y) for x, y in train],
            "score_func": score,
            # what each width of a layer alone loses: measured once for all limits and seeds
            "checkpoint": str(HERE / f"fastnas_{setting.model}.pth"),
        },
    )
    return deepcopy(small).eval()


def cut(source: Any, setting: Setting, ratio: float, step: int, example: Any) -> Any:
    """A copy of `source` that Torch-Pruning has pruned, all groups by one ranking."""
    import torch
    import torch_pruning as tp

    copy = deepcopy(source)
    for own, original in zip(copy.parameters(), source.parameters(), strict=True):
        own.grad = None if original.grad is None else original.grad.clone()
    kind = getattr(tp.importance, THEIRS[setting.method])
    classifier = [m for m in copy.modules() if isinstance(m, torch.nn.Linear)][-1:]
    torch.manual_seed(setting.seed)
    pruner = tp.pruner.BasePruner(
        copy, example, importance=kind(), global_pruning=True, pruning_ratio=ratio, round_to=step,
        ignored_layers=classifier,
    )  # fmt: skip
    pruner.step()
    return copy.eval()


def _example(run_context: Any) -> Any:
    import torch

    return torch.zeros(2, *run_context.data.spec.input_shape)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds as Markdown: test accuracy with half its range, MACs, bytes, speed-up."""
    lines = ["| limit | method | test accuracy | fewer MACs | onnx bytes | latency | seeds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for target, method in itertools.product(TARGETS, (*OURS, *THEIRS, FASTNAS)):
        own = [r for r in rows if (r["target"], r["method"]) == (target, method)]
        if own:
            accuracy = [100 * float(r["test_accuracy"]) for r in own]
            fewer = statistics.mean(float(r["float_macs"]) / float(r["macs"]) for r in own)
            size = statistics.mean(float(r["onnx_bytes"]) for r in own)
            faster = statistics.mean(float(r["speedup"]) for r in own)
            spread = (max(accuracy) - min(accuracy)) / 2
            lines.append(f"| {target} | {method} | {statistics.mean(accuracy):.2f} ± {spread:.2f} |"
                         f" {fewer:.2f}x | {size:,.0f} | {faster:.2f}x | {len(own)} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Mapping[str, Any]], model: str) -> None:
    """Those rows, and what earlier calls have left of other settings, as CSV and as a table."""
    path = HERE / f"{model}.csv"
    kept = {_key(row): row for row in csv.DictReader(path.open())} if path.exists() else {}
    merged = list((kept | {_key(row): row for row in rows}).values())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(merged)
    (HERE / f"{model}.md").write_text(table(merged), encoding="utf-8")


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[field.name]) for field in fields(Setting))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--model", default="resnet20", help="or mobilenet_v2, ...")
    parser.add_argument("--width", type=float, help="of mobilenet_v2, as in its checkpoint")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--validation-rows", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=(*OURS, *THEIRS, FASTNAS), help="and controls")
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=TARGETS)
    parser.add_argument("--epochs", type=float, default=0.25, help="of finetuning")
    chosen = parser.parse_args()
    where = [
        f"model={chosen.model}",
        f"dataset.root={Path(chosen.root).resolve()}",
        f"dataset.validation_rows={Path(chosen.validation_rows).resolve()}",
        f"model.checkpoint={Path(chosen.checkpoint).resolve()}",
        *([f"model.width={chosen.width}"] if chosen.width else []),
    ]
    grid = settings(chosen.model, chosen.seeds, chosen.targets, chosen.epochs)
    wanted = [s for s in grid if not chosen.only or s.method in (*CONTROLS, *chosen.only)]
    if find_spec("modelopt") is None:
        print(f"{FASTNAS} is left out: nvidia-modelopt is not installed (README.md)")
        wanted = [s for s in wanted if s.method != FASTNAS]
    found: dict[Setting, dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, mp_context=spawn) as pool:
        waiting = {pool.submit(measure, setting, where): setting for setting in wanted}
        for number, done in enumerate(as_completed(waiting), 1):
            row = found[waiting[done]] = done.result()
            print(f"{number}/{len(wanted)} {row['target']} {row['method']}, seed {row['seed']}: "
                  f"{100 * row['test_accuracy']:.2f}", flush=True)  # fmt: skip
            write([found[s] for s in wanted if s in found], chosen.model)
    print(table([found[s] for s in wanted]))


if __name__ == "__main__":
    main()
