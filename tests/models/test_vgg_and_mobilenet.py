"""VGG-small and MobileNetV2: published counts, closed forms, and that their channels can go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from compressbench.models.mobilenet_v2 import MobileNetV2, rounded
from compressbench.models.vgg_small import VggSmall
from compressbench.pruning.channels.limits import macs
from compressbench.pruning.channels.settling import settled_coupling


def weights(model: nn.Module) -> int:
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return sum(m.weight.numel() for m in layers)


def test_vgg_small_has_the_counts_of_its_closed_form():
    model = VggSmall((3, 32, 32), 10).eval()
    pairs = [(3, 128, 32), (128, 128, 32), (128, 256, 16), (256, 256, 16), (256, 512, 8),
             (512, 512, 8)]  # fmt: skip
    fc = 512 * 16 * 10
    assert weights(model) == sum(9 * i * o for i, o, _ in pairs) + fc == 4_656_512 + 0 * fc
    assert (
        macs(model, torch.zeros(1, 3, 32, 32)) == sum(9 * i * o * s * s for i, o, s in pairs) + fc
    )


def test_mobilenet_v2_has_the_published_parameters():
    model = MobileNetV2((3, 32, 32), 10).eval()
    assert sum(p.numel() for p in model.parameters()) == 2_236_682
    assert [rounded(c) for c in (1, 8.5, 12, 17.6, 24, 33)] == [8, 8, 16, 16, 24, 32]


def test_mobilenet_v2_macs_equal_a_sum_over_blocks():
    model = MobileNetV2((3, 32, 32), 10).eval()
    total, inner, size = 27 * 32 * 32 * 32, 32, 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
              (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip
    for expansion, outer, blocks, stride in stages:
        for number in range(blocks):
            hidden, before = inner * expansion, size
            size = size // stride if number == 0 else size
            total += inner * hidden * before**2 if expansion > 1 else 0
            total += 9 * hidden * size**2 + hidden * outer * size**2
            inner = outer
    total += 320 * 1280 * size**2 + 1280 * 10
    assert macs(model, torch.zeros(1, 3, 32, 32)) == total


def test_small_images_are_refused():
    with pytest.raises(UserError, match="at least 8x8, got 7x32"):
        VggSmall((3, 7, 32), 10)


@pytest.mark.parametrize(
    "model", [VggSmall((3, 16, 16), 10, 8), MobileNetV2((3, 16, 16), 10, 0.25)], ids=["vgg", "mob"]
)
def test_all_channels_but_the_classes_can_go(model):
    found = settled_coupling(model.eval(), torch.randn(2, 3, 16, 16))
    layers = {n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    (last,) = (name for name in layers if "classifier" in name)
    assert found.reasons == {last: "its channels are the model's outputs"}
    assert {name for part in found.parts for name in part.layers} == layers - {last}
    assert not found.failed
