"""Pictures without labels: a folder of the user's, prepared as a pretrained net expects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressbench.core.errors import UserError
from compressbench.core.types import Split, SplitName
from compressbench.core.validation import check_integer, check_path, is_number, shown
from compressbench.data import files
from compressbench.data.arrays import Arrays, Division
from compressbench.tasks.unlabelled import Unlabelled

SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures(
    root: str | None = None,
    size: int = 224,
    resize: int | None = 256,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    scores: bool = True,
) -> Arrays:
    """All PNG and JPEG files below a folder, in RGB, without labels, to compress a pretrained net.

    The shorter side is resized to `resize` (bicubic, antialiased), then the centre of `size` x
    `size` pixels is cut out; pixels are (x / 255 - mean) / std.

    Args:
        root: the folder; at least three pictures.
        size: pixels of the square that the model sees.
        resize: pixels of the shorter side before; None takes `size`.
        mean: of the three channels, as the pretrained net expects it; ImageNet's by default.
        std: the same.
        validation_fraction: share of the pictures, in (0, 1).
        test_fraction: share of the pictures, in (0, 1).
        split_seed: seed of the splits.
        scores: whether the model answers scores of classes.
    """
    check_integer("dataset.size", size, 1, 8192)
    if resize is not None:
        check_integer("dataset.resize", resize, size, 8192)
    for name, values in (("mean", mean), ("std", std)):
        listed = isinstance(values, (list, tuple)) and len(values) == 3
        if not listed or not all(map(is_number, values)) or (name == "std" and min(values) <= 0):
            raise UserError(f"dataset.{name} must be three numbers, got {values!r}")
    found = _found(root)
    division = Division(validation_fraction, test_fraction, split_seed)

    def read() -> Mapping[SplitName, Split]:
        return {"train": _read(found, size, resize or size)}

    options: dict[str, Any] = {"size": size, "resize": resize, "mean": [*mean], "std": [*std]}
    return Arrays(
        "pictures", read, (), Unlabelled(scores), "fidelity", division,
        options=options, mean=tuple(mean), std=tuple(std),
    )  # fmt: skip


def _found(root: str | None) -> list[Path]:
    if not root or not isinstance(root, str):
        raise UserError("dataset.root is not set: add dataset.root=<folder with pictures>")
    check_path("dataset.root", root)
    folder = Path(root).expanduser()
    try:
        every = sorted(folder.rglob("*"))
    except OSError as error:  # such as a name that is too long
        raise UserError(f"dataset.root={shown(root)}: {error.strerror}") from error
    found = [path for path in every if path.suffix.lower() in SUFFIXES and path.is_file()]
    if len(found) < 3:
        raise UserError(
            f"dataset.root={root}: at least three .png or .jpg files are needed, got {len(found)}"
        )
    return found


def _read(paths: Sequence[Path], size: int, resize: int) -> Split:
    with ThreadPoolExecutor(files.workers()) as pool:
        taken = list(pool.map(lambda path: _square(path, size, resize), paths))
    inputs = torch.from_numpy(np.stack(taken)).permute(0, 3, 1, 2).contiguous()
    return Split(inputs, torch.zeros(len(inputs), dtype=torch.int64))


def _square(path: Path, size: int, resize: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a PNG or JPEG picture: {error}") from error
    factor = resize / min(image.size)
    width, height = (max(size, round(side * factor)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
