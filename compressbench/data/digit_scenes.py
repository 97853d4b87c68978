"""Scenes of scikit-learn's digits: the digit of each pixel, or which digits are there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compressbench.core.types import Split, SplitName
from compressbench.core.validation import check_integer
from compressbench.data.arrays import Arrays
from compressbench.data.digits import Digits
from compressbench.data.partition import SPLITS
from compressbench.tasks.multilabel import MultiLabel
from compressbench.tasks.segmentation import Segmentation

SIZE, CELL = 16, 8  # pixels of a scene and of a digit, which lies in one of its four quarters
INK = 100  # the least brightness of a pixel that belongs to a digit
DIGITS = tuple(str(digit) for digit in range(10))


def digit_masks(
    scenes: int = 2000, noise: int = 40, scene_seed: int = 0, metric: str = "mean_iou"
) -> Arrays:
    """Segmentation: each pixel of a scene of 16x16 is background or part of one of ten digits.

    Args:
        scenes: number for training, at least 8; validation and test have a quarter of it each.
        noise: largest brightness of the random background, 0 to 255.
        scene_seed: seed of the scenes.
        metric: mean_iou or pixel_accuracy.
    """
    options = _options(scenes, noise, scene_seed)

    def read() -> Mapping[SplitName, Split]:
        return {name: _masks(*_scenes(name, **options)) for name in SPLITS}

    names = ("background", *DIGITS)
    return Arrays("digit_masks", read, names, Segmentation(), metric, options=options)


def digit_sets(
    scenes: int = 2000, noise: int = 40, scene_seed: int = 0, metric: str = "mean_ap"
) -> Arrays:
    """Several labels: which of ten digits are in a scene of 16x16, none to four.

    For the arguments see `digit_masks`; metrics are mean_ap, micro_f1, exact_match.
    """
    options = _options(scenes, noise, scene_seed)

    def read() -> Mapping[SplitName, Split]:
        return {name: _sets(*_scenes(name, **options)) for name in SPLITS}

    return Arrays("digit_sets", read, DIGITS, MultiLabel(), metric, options=options)


def _options(scenes: int, noise: int, scene_seed: int) -> dict[str, int]:
    check_integer("dataset.scenes", scenes, 8)
    check_integer("dataset.noise", noise, 0, 255)
    check_integer("dataset.scene_seed", scene_seed, 0)
    return {"scenes": scenes, "noise": noise, "seed": scene_seed}


def _scenes(split: SplitName, scenes: int, noise: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 1, 16, 16], and the digit of each quarter, int64 [N, 2, 2], -1 for none.

    Digits of one split are in no scene of another.
    """
    count = scenes if split == "train" else max(1, scenes // 4)
    generator = torch.Generator().manual_seed(seed * len(SPLITS) + SPLITS.index(split))
    digits = Digits().split(split)
    chosen = torch.randint(len(digits), (count, 2, 2), generator=generator)
    there = torch.rand(count, 2, 2, generator=generator) < 0.5
    labels = torch.where(there, digits.targets[chosen], -1)
    cells = torch.where(there[..., None, None], digits.inputs[chosen, 0], 0)
    whole = cells.permute(0, 1, 3, 2, 4).reshape(count, SIZE, SIZE)
    behind = torch.randint(noise + 1, whole.shape, generator=generator)
    return torch.maximum(whole, behind.to(torch.uint8))[:, None], labels


def _masks(images: Tensor, labels: Tensor) -> Split:
    digit = labels.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    return Split(images, torch.where(images[:, 0] >= INK, digit + 1, 0))


def _sets(images: Tensor, labels: Tensor) -> Split:
    every = labels.flatten(1)
    return Split(images, torch.stack([(every == d).any(1) for d in range(10)], 1).float())
