"""Time the train stage's fit against a bare PyTorch loop, side by side, several times.

python experiments/train_overhead/compare.py --root FOLDER_WITH_CIFAR10_PARQUET
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from compressbench.config.instantiate import instantiate
from compressbench.core.types import Context, Data, Runtime, Split
from compressbench.data.batches import batches
from compressbench.data.cifar10 import Cifar10
from compressbench.models.resnet import ResNet
from compressbench.tasks.classification import CLASSIFICATION
from compressbench.training.fits.fit import fit_
from compressbench.training.fits.schedule import Schedule
from compressbench.training.train import labels_loss

BATCH = 128


class Part:
    """The first images of a dataset's training split, so that one epoch is short."""

    def __init__(self, data: Data, images: int) -> None:
        whole = data.split("train")
        self.part = Split(whole.inputs[:images], whole.targets[:images])
        self.spec, self.prepare, self.augment = data.spec, data.prepare, data.augment

    def split(self, name: str) -> Split:
        return self.part


def fresh() -> torch.nn.Module:
    torch.manual_seed(0)
    return ResNet(input_shape=(3, 32, 32), num_classes=10, depth=20)


def bare_loop(data: Part, device: torch.device) -> None:
    """What a careful engineer writes: the same model, data, batches, optimizer and schedule."""
    model = fresh().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = len(data.part) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen = torch.zeros((), device=device)
    for x, y in batches(data, "train", BATCH, device=device, shuffle_seed=1, augment=True,
                        drop_last=True):  # fmt: skip
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        schedule.step()
        seen += loss.detach()
    seen.item()


def fit(data: Part, runtime: Runtime, folder: Path) -> None:
    context = Context(data, runtime, 1, folder, instantiate)
    plan = Schedule(1.0, BATCH, partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    fit_(fresh(), labels_loss(CLASSIFICATION, 0.0), plan, context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="folder with train.parquet, test.parquet")
    parser.add_argument("--images", type=int, default=6400, help="per fit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gpu = torch.cuda.is_available()
    runtime = Runtime("gpu" if gpu else "cpu", threads=options.threads)
    data = Part(Cifar10(root=options.root), options.images)
    ratios = []
    for turn in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            bare_loop(data, runtime.device)
            bare = time.perf_counter() - started
            started = time.perf_counter()
            fit(data, runtime, Path(folder))
            ours = time.perf_counter() - started
        if turn == 0:
            continue  # warm-up
        ratios.append(ours / bare)
        print(f"bare {options.images / bare:.0f} images/s, train stage "
              f"{options.images / ours:.0f} images/s, time ratio {ratios[-1]:.3f}")  # fmt: skip
    print(f"median time ratio of {len(ratios)}: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
