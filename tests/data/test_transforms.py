from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressbench.core.errors import UserError
from compressbench.data import transforms


def random_images(count, channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 3),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    padding=st.integers(0, 2),
)
def test_a_crop_is_a_window_of_the_padded_image(channels, height, width, padding):
    images = random_images(6, channels, height, width)
    cropped = transforms.random_crop(images, padding, torch.Generator().manual_seed(1))
    assert cropped.shape == images.shape and cropped.dtype == torch.uint8
    for image, crop in zip(images.numpy(), cropped.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        windows = [
            padded[:, top : top + height, left : left + width]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        assert any((window == crop).all() for window in windows)


def test_crops_reach_every_place_and_images_are_cropped_apart():
    images = torch.zeros(2000, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2] = 255
    cropped = transforms.random_crop(images, 2, torch.Generator().manual_seed(0))
    counts = (cropped[:, 0] == 255).sum(0)
    assert counts.sum() == 2000 and counts.min() > 40 and counts.max() < 130  # 80 each, 4.5 sigma


def test_a_flip_mirrors_about_half_of_the_images():
    images = random_images(1000, 3, 2, 5)
    flipped = transforms.random_flip(images, torch.Generator().manual_seed(0))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and 440 < int(same.sum()) < 560


def test_normalise_is_the_formula():
    images = random_images(4, 3, 3, 2)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    found = transforms.normalise(images, mean, std)
    reference = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), reference, atol=1e-6, rtol=0)


def test_statistics_agree_with_numpy():
    images = random_images(50, 3, 4, 4)
    images[:, 2] = 7  # a constant channel must not divide by zero
    mean, std = transforms.channel_statistics(images)
    scaled = images.numpy() / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std[:2], scaled.std((0, 2, 3))[:2], atol=1e-6)
    assert std[2] == 1.0


@pytest.mark.parametrize("padding", [-1, 4])
def test_padding_must_be_smaller_than_the_image(padding):
    with pytest.raises(UserError, match=rf"in \[0, 3\], got {padding}"):
        transforms.check_padding(padding, 4, 9)
