"""PNG and JPEG -> uint8 tensors, decoded once and kept on disk."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.data import files
from compressbench.data.sources import Source
from compressbench.data.tensor_cache import Tensors, cached_tensors

if TYPE_CHECKING:
    from PIL import Image

Item = TypeVar("Item")
SCHEMA = 1
IMAGES_AT_ONCE = 256  # by one thread
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La",
                   "RGBa", "LAB")  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What every decoded image is made into: `channels` 1 (luma) or 3 (RGB), size in pixels."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def decoder() -> str:
    """The library that decodes; another version may give other pixels."""
    from importlib.metadata import version

    return f"pillow {version('pillow')}"


def first_form(source: Source, channels: int | None, size: tuple[int, int] | None) -> Form:
    """The form asked for, filled in from the first image of `source` where it is None."""
    if channels is not None and size is not None:
        return Form(channels, *size)
    first = next(source.images(), None)
    if first is None:
        raise UserError(f"{source.name}: holds no images")
    image = _open(*first)
    height, width = size or (image.height, image.width)
    return Form(channels or (1 if image.mode in ("1", "L", "LA") else 3), height, width)


def decoded(source: Source, form: Form) -> Tensor:
    """All images of `source`, uint8 [N, C, H, W]: from the disk, else decoded and put there."""
    lines = files.describe(source.files)
    contents = [[line["path"], line["sha256"]] for line in lines]
    options = {"form": asdict(form), "by": decoder(), "column": source.image_column}

    def make() -> Tensors:
        inputs = _decode_all(source, form)
        # What was decoded must be what the key says, also where the file's times were restored.
        files.verify(source.files, lines)
        return {"inputs": inputs}

    def fits(found: Tensors) -> bool:
        inputs = found["inputs"]
        return inputs.dtype == torch.uint8 and tuple(inputs.shape[1:]) == form.shape

    return cached_tensors({"schema": SCHEMA, "files": contents, **options}, make, fits)["inputs"]


def _decode_all(source: Source, form: Form) -> Tensor:
    count = len(source.labels())
    inputs = torch.empty((count, *form.shape), dtype=torch.uint8)
    done = resized = 0
    with ThreadPoolExecutor(files.workers()) as pool:
        for group in _chunks(source.images(), IMAGES_AT_ONCE * files.workers()):
            if done + len(group) > count:
                raise CheckFailedError(f"{source.name}: changed while it was read")
            parts = _chunks(iter(group), IMAGES_AT_ONCE)
            places = _chunks(iter(range(done, done + len(group))), IMAGES_AT_ONCE)
            resized += sum(
                pool.map(lambda part, rows: _decode_into_(inputs, rows, part), parts, places)
            )
            done += len(group)
    if done != count:
        raise CheckFailedError(f"{source.name}: {done} images for {count} labels")
    if resized:
        logging.getLogger(__name__).warning(
            "%s: resized %d of %d images to %dx%d (bilinear)",
            *(source.name, resized, count, form.height, form.width),
        )
    return inputs


def _chunks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _decode_into_(inputs: Tensor, rows: list[int], encoded: list[tuple[str, bytes]]) -> int:
    """Fill `inputs[rows]` from (place, bytes) pairs; return how many had to be resized."""
    from PIL import Image

    _, channels, height, width = inputs.shape
    resized = 0
    for row, item in zip(rows, encoded, strict=True):
        image = _open(*item).convert("L" if channels == 1 else "RGB")
        if (image.height, image.width) != (height, width):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            resized += 1
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        inputs[row] = pixels.view(height, width, channels).permute(2, 0, 1)
    return resized


def _open(place: str, data: bytes) -> Image.Image:
    """The image, wholly read; UserError says where one cannot be decoded."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{place}: not a PNG or JPEG image ({reason})") from error
    if image.mode not in EIGHT_BIT_MODES:
        raise UserError(f"{place}: images must have 8 bits a channel, got mode {image.mode}")
    return image
