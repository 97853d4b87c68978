"""What a teacher costs a step of training: asked at every step, or looked up.

python experiments/teacher_cost/measure.py [--rounds 12]

A half-width ResNet-8 learns from a ResNet-20, Hinton's loss, batches of 64 noise images of 3x32x32
that are not augmented, one thread. In every round each way gets a few steps, in another order;
times are processor seconds of this process, medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.config.instantiate import instantiate
from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Runtime, Split
from compressbench.models.resnet import ResNet
from compressbench.tasks.classification import CLASSIFICATION
from compressbench.training.fits.schedule import Schedule
from compressbench.training.losses.hinton import Hinton
from compressbench.training.teaching import teachers
from compressbench.training.teaching.objective import lesson
from compressbench.training.train import labels_loss

BATCH, STEPS, IMAGES = 64, 4, 2048


@dataclass(frozen=True)
class Noise:
    spec = DataSpec("noise", (3, 32, 32), tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)

    def manifest(self) -> dict[str, Any]:
        return {}

    def verify(self) -> None:
        return None

    def split(self, name: str) -> Split:
        generator = torch.Generator().manual_seed(0)
        shape = (IMAGES, 3, 32, 32)
        inputs = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return Split(inputs, torch.randint(10, (IMAGES,), generator=generator))

    def prepare(self, inputs: Tensor) -> Tensor:
        return inputs.float() / 255 / 0.25 - 2

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs


def step(
    model: nn.Module, loss: Callable[..., Any], optimizer: Any, batch: tuple[Tensor, ...]
) -> None:
    optimizer.zero_grad()
    loss(model, *batch)[0].backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    context = Context(Noise(), Runtime(), 0, Path("unused"), instantiate)
    student = ResNet([3, 32, 32], 10, 8, 8).train()
    teacher = ResNet([3, 32, 32], 10).eval()
    inputs = {"teacher": Artifact(teacher, {}, (), frozenset({TRAINED}))}
    split, rows = Noise().split("train"), torch.arange(BATCH)
    batch = (Noise().prepare(split.inputs[:BATCH]), split.targets[:BATCH], rows)

    models = {name: deepcopy(student) for name in ("alone", "asked", "looked up")}
    losses: dict[str, Any] = {"alone": labels_loss(CLASSIFICATION, 0.0)}
    bound, teachers.LOOK_UP_BYTES = teachers.LOOK_UP_BYTES, 0
    schedule = Schedule(2, BATCH, sgd)
    with lesson(models["asked"], inputs, Hinton(), schedule, context) as losses["asked"]:
        teachers.LOOK_UP_BYTES = bound
        started = time.process_time()
        with lesson(models["looked up"], inputs, Hinton(), schedule, context) as found:
            once = time.process_time() - started
            losses["looked up"] = found
            ways: dict[str, Callable[[], object]] = {
                name: partial(step, model, losses[name], sgd(model.parameters()), batch)
                for name, model in models.items()
            }
            ways["teacher"] = torch.no_grad()(partial(teacher, batch[0]))
            seconds = race(ways, chosen.rounds)
    print(*losses["asked"].notes, *losses["looked up"].notes, sep="\n")
    for name, values in seconds.items():
        print(f"{name:10} {1000 * statistics.median(values):7.2f} ms a step of {BATCH}")
    plain = [a + t for a, t in zip(seconds["alone"], seconds["teacher"], strict=True)]
    for text, ours, theirs in (
        ("asked over alone + teacher", seconds["asked"], plain),
        ("looked up over alone", seconds["looked up"], seconds["alone"]),
        ("asked over looked up", seconds["asked"], seconds["looked up"]),
    ):
        ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"{text}: {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")
    print(f"the table: {1000 * once / IMAGES * BATCH:.2f} ms for {BATCH} images, once")


def race(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each way, by round; a round before is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        names = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for name in names:
            started = time.process_time()
            for _ in range(STEPS):
                ways[name]()
            if number:
                seconds[name].append((time.process_time() - started) / STEPS)
    return seconds


if __name__ == "__main__":
    main()
