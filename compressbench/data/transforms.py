"""Image transforms of whole batches, on the device of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from compressbench.core.validation import check_integer


def normalise(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std per channel; uint8 [B, C, H, W] -> float32 [B, C, H, W]."""
    shape = (1, len(mean), 1, 1)
    centre = torch.tensor(mean, dtype=torch.float32, device=inputs.device).view(shape)
    spread = torch.tensor(std, dtype=torch.float32, device=inputs.device).view(shape)
    return inputs.float().div_(255.0).sub_(centre).div_(spread)


def random_crop(inputs: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros on all sides and crop to the original size, at a random place per image.

    Numbers are drawn on the generator's device, so the result does not depend on the images'
    device.
    """
    if padding == 0:
        return inputs
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, (padding,) * 4)
    places = torch.randint(
        0, 2 * padding + 1, (2, count), generator=generator, device=generator.device
    )
    top, left = places.to(inputs.device)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, top, left, H, W], a view
    return windows[torch.arange(count, device=inputs.device), :, top, left]


def random_flip(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    drawn = torch.randint(0, 2, (len(inputs),), generator=generator, device=generator.device)
    flipped = drawn.bool().to(inputs.device)
    return torch.where(flipped.view(-1, 1, 1, 1), inputs.flip(3), inputs)


def crop_and_flip(inputs: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """`random_crop`, followed by `random_flip` if `flip`."""
    cropped = random_crop(inputs, padding, generator)
    return random_flip(cropped, generator) if flip else cropped


def check_padding(padding: int, height: int, width: int) -> None:
    """Raise UserError unless `padding` is in [0, min(height, width) - 1]."""
    name = f"dataset.crop_padding of images of {height}x{width}"
    check_integer(name, padding, 0, min(height, width) - 1)


def channel_statistics(inputs: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], scaled to [0, 1].

    Computed from exact histograms, so the result does not depend on the number of threads or the
    order of the images. For a constant channel the deviation is 1.
    """
    values = torch.arange(256, dtype=torch.float64) / 255.0
    means, deviations = [], []
    for channel in range(inputs.shape[1]):
        counts = torch.bincount(inputs[:, channel].reshape(-1), minlength=256).double()
        share = counts / counts.sum()
        mean = (share * values).sum()
        deviation = (share * (values - mean) ** 2).sum().sqrt().item()
        means.append(round(mean.item(), 6))
        deviations.append(round(deviation, 6) or 1.0)
    return tuple(means), tuple(deviations)
