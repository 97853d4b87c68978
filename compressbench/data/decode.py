"""Decodes PNG and JPEG images to uint8 tensors, with a cache on disk."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from compressbench.core.errors import TransientError, UserError
from compressbench.core.memory import check_memory
from compressbench.data import files
from compressbench.data.sources import Source
from compressbench.data.tensor_cache import Tensors, cached_tensors

if TYPE_CHECKING:
    from PIL import Image

Item = TypeVar("Item")
SCHEMA = 1
MOST_PIXELS = 50_000_000  # of an image: 200 MB of memory for each of the threads that decode
MOST_SIDE = 2**14  # pixels of height or width that images are resized to
IMAGES_AT_ONCE = 256  # images per task of a thread
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La",
                   "RGBa", "LAB")  # fmt: skip


@dataclass(frozen=True)
class Form:
    """The format of decoded images: `channels` 1 (luma) or 3 (RGB), size in pixels."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def decoder() -> str:
    """Name and version of the decoder; another version may decode to different pixels."""
    from importlib.metadata import version

    return f"pillow {version('pillow')}"


def first_form(source: Source, channels: int | None, size: tuple[int, int] | None) -> Form:
    """The given form; what is None is taken from the first image of `source`."""
    if channels is not None and size is not None:
        return Form(channels, *size)
    first = next(source.images(), None)
    if first is None:
        raise UserError(f"{source.name}: contains no images")
    image = _open(*first)
    height, width = size or (image.height, image.width)
    return Form(channels or (1 if image.mode in ("1", "L", "LA") else 3), height, width)


def decoded(source: Source, form: Form) -> Tensor:
    """All images of `source`, uint8 [N, C, H, W]: from the cache, or decoded and cached."""
    lines = files.describe(source.files)
    contents = [[line["path"], line["sha256"]] for line in lines]
    options = {"form": asdict(form), "by": decoder(), "column": source.image_column}

    def make() -> Tensors:
        inputs = _decode_all(source, form)
        # The files must match the cache key, even if their modification times were reset.
        files.verify(source.files, lines)
        return {"inputs": inputs}

    def fits(cached: Tensors) -> bool:
        inputs = cached["inputs"]
        return inputs.dtype == torch.uint8 and tuple(inputs.shape[1:]) == form.shape

    return cached_tensors({"schema": SCHEMA, "files": contents, **options}, make, fits)["inputs"]


def _decode_all(source: Source, form: Form) -> Tensor:
    count = len(source.labels())
    check_memory(
        f"dataset: {count} images of {form.channels}x{form.height}x{form.width}",
        count * math.prod(form.shape),
    )
    inputs = torch.empty((count, *form.shape), dtype=torch.uint8)
    done = resized = 0
    with ThreadPoolExecutor(files.workers()) as pool:
        for group in _chunks(source.images(), IMAGES_AT_ONCE * files.workers()):
            if done + len(group) > count:
                raise TransientError(f"{source.name}: changed while being read")
            parts = _chunks(iter(group), IMAGES_AT_ONCE)
            places = _chunks(iter(range(done, done + len(group))), IMAGES_AT_ONCE)
            resized += sum(
                pool.map(lambda part, rows: _decode_into_(inputs, rows, part), parts, places)
            )
            done += len(group)
    if done != count:
        raise TransientError(f"{source.name}: {done} images for {count} labels")
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
    """Decode (place, bytes) pairs into `inputs[rows]`; return how many were resized."""
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


def _header(data: bytes) -> Image.Image:
    """An image whose pixels are not decoded yet. Not by `Image.open`, which warns of large ones."""
    from PIL import JpegImagePlugin, PngImagePlugin

    file = io.BytesIO(data)
    if data.startswith(b"\x89PNG"):
        return PngImagePlugin.PngImageFile(file)
    return JpegImagePlugin.JpegImageFile(file)


def _check_size(image: Image.Image, place: str) -> None:
    """Raise UserError for an image of too many pixels, from its header alone."""
    if image.width * image.height > MOST_PIXELS:
        raise UserError(
            f"{place}: {image.width}x{image.height} pixels, at most {MOST_PIXELS} are decoded: "
            "make the image smaller"
        )


def _open(place: str, data: bytes) -> Image.Image:
    """Decode an image; raises UserError with its `place` if that fails."""
    try:
        image = _header(data)
        _check_size(image, place)
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{place}: not a PNG or JPEG image ({reason})") from error
    if image.mode not in EIGHT_BIT_MODES:
        raise UserError(f"{place}: images must have 8 bits per channel, got mode {image.mode}")
    return image
