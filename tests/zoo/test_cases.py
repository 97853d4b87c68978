"""Models that users of other libraries reported as broken: each right, or one line in time."""

from __future__ import annotations

import re

import pytest

from compressbench.core.errors import UserError
from compressbench.data.digits import Digits
from tests.zoo.catalogue import ZOO, config_of
from tests.zoo.judge import outputs, outputs_of
from tests.zoo.running import RECIPES, cut_channels, prepared, run_recipe, steps_of

DATA = Digits()
CONFIG = {entry.name: config_of(entry) for entry in ZOO}
BEFORE_TRAINING = {
    "TwoInputs": "quantize", "DataBranch": "baseline", "NumpyInForward": "baseline",
    "ItemInForward": "quantize",
    "StaticBatch": "baseline", "TupleAlways": "baseline", "DictOutput": "baseline",
    "OpaqueConstructor": "baseline", "NumpyFunctions": "baseline", "Conditional": "quantize",
}  # fmt: skip
HALVED = {  # layers -> how many channels of a layer may be left
    "Decoder": {"embed": (40, 48)},  # 22 groups of four, half of them
    "MaskTimesMap": {"stem.0": (10, 12)},
    "FlattenedBranches": {"a.0": (6, 6), "b.0": (10, 12)},
    "GroupedQueryEncoder": {},
    "AuxiliaryHead": {"a.0": (10, 12)},
}


@pytest.mark.parametrize("name", BEFORE_TRAINING)
def test_a_model_that_cannot_become_a_file_is_refused_before_training(name, tmp_path):
    with pytest.raises(UserError) as caught:
        prepared(CONFIG[name], BEFORE_TRAINING[name], tmp_path, ())
    assert len(str(caught.value).splitlines()) == 1
    assert re.match("model|recipe", str(caught.value)), caught.value


@pytest.mark.parametrize("name", HALVED)
def test_half_of_the_channels_goes_and_not_more(name):
    ended = cut_channels(CONFIG[name])
    assert ended.kind == "right", ended
    for layer, (least, most) in HALVED[name].items():
        total = len(ended.model.get_submodule(layer).weight)
        assert least <= total <= most


@pytest.mark.parametrize("name", ["BilinearPooling", "GramMatrix"])
def test_products_of_channels_take_seconds(name):
    ended = cut_channels(CONFIG[name])
    assert ended.kind == "right"
    assert "stem.0" in ended.cut


RUNS = [
    ("TupleInTraining", "prune_channels"),
    ("AuxiliaryHead", "prune_channels"),
    ("LayerDrop", "distill_mixed"),
    ("NewWeightNorm", "prune_channels"),
    ("NewWeightNorm", "prune_then_quant"),
    ("OldWeightNorm", "quantize"),
    ("InfinityMaskEncoder", "quantize"),
    ("Conv3dNet", "quantize"),
    ("AsymmetricPads", "quantize"),
    ("GatedDepth", "qat"),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "recipe"), RUNS)
def test_right_or_refused_before_training(name, recipe, tmp_path):
    ended = run_recipe(CONFIG[name], recipe, tmp_path)
    assert ended.kind in ("right", "refused"), ended


@pytest.mark.long
def test_four_bit_activations_beside_eight_bit_weights(tmp_path):
    more = ["recipe.stages.qat.bits=8", "recipe.stages.qat.activation_bits=4"]
    ended = run_recipe(CONFIG["GatedDepth"], "qat", tmp_path, more)
    assert ended.kind == "right", ended


def test_quantization_does_not_lose_what_a_mask_of_the_smallest_float_hides(tmp_path):
    steps = steps_of(CONFIG["SmallestMaskEncoder"], "quantize", tmp_path, RECIPES["quantize"])
    inputs = DATA.prepare(DATA.split("validation").inputs[:64])
    exact = outputs(steps[0].artifact.model, inputs)
    lost = outputs_of(steps[-1].files / "model.onnx", inputs) - exact
    assert float(lost.square().mean()) < 0.01 * float(exact.var())


def test_a_frozen_layer_is_not_reported_as_trained(tmp_path):
    steps = steps_of(CONFIG["FrozenStem"], "baseline", tmp_path, RECIPES["quantize"])
    (stem,) = (row for row in steps[0].coverage if row.layer == "stem.0")
    assert stem.touched == 0
    assert "frozen" in stem.detail
