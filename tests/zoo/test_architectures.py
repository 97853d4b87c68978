"""Half of the channels of every architecture, on random values; recipes on a few of them."""

from __future__ import annotations

import pytest

from tests.zoo.catalogue import RIGHT, ZOO, Entry, config_of
from tests.zoo.running import cut_channels, run_recipe

QUICK = {
    "BottleneckResNet", "RegNet", "DenseNet", "MobileNetV3", "ShuffleNetV1", "Inception", "UNet",
    "SpacePyramid", "BlockAttention", "VisionTransformer", "MixtureOfExperts", "ConvNeXt",
    "WaveNet", "PReLUNet", "CalledTwice", "Slices",
}  # fmt: skip
WHOLE = [(e.name, r) for e in ZOO if e.expected == RIGHT for r in ("quantize", "prune_channels")]


def quick(entry: Entry) -> object:
    marks = [] if entry.name in QUICK else [pytest.mark.long]
    return pytest.param(entry, id=entry.name, marks=marks)


@pytest.mark.parametrize("entry", [quick(e) for e in ZOO if e.expected == RIGHT])
def test_removed_channels_change_nothing_else(entry):
    ended = cut_channels(config_of(entry))
    assert ended.kind == "right" or (ended.kind == "refused" and not entry.cut), ended
    assert ended.kind == "refused" or set(entry.cut) <= set(ended.cut), ended.cut


@pytest.mark.long
@pytest.mark.parametrize(("name", "recipe"), WHOLE)
def test_a_recipe_ends_right(name, recipe, tmp_path):
    (entry,) = (e for e in ZOO if e.name == name)
    ended = run_recipe(config_of(entry), recipe, tmp_path)
    refused = ended.kind == "refused" and recipe == "prune_channels" and not entry.cut
    assert ended.kind == "right" or refused, ended


def test_names_are_unique_and_more_than_sixty_must_come_out_right():
    names = [entry.name for entry in ZOO]
    assert len(set(names)) == len(names)
    assert sum(entry.expected == RIGHT for entry in ZOO) >= 60
