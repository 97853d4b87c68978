"""The quantize stage: what it does to weights and activations, what it leaves, what it refuses."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core import artifact, edits
from compressbench.core.activation_quantizers import CHILD
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import ACTIVATION_QUANTIZED, TRAINED, WEIGHT_QUANTIZED
from compressbench.quantization.grids.calibration import calibrate_
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.observers.percentile import Percentile
from compressbench.training.batchnorm import shift_batchnorm_
from tests.quantization.quantized_net import (
    Net,
    Noise,
    context,
    images,
    quantized_layers,
    stage,
    start,
)
from tests.two_ranks import on_two_ranks


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_at_most_two_to_the_bits_values_in_a_channel_and_the_checks_hold(bits, granularity):
    options = {"bits": bits, "granularity": granularity, "rules": []}
    result = stage(**options).run({"model": start()}, context())
    artifact.check(result.artifact)
    layers = quantized_layers(result.artifact.model)
    assert set(layers) == {"stem", "depthwise", "grouped", "fc"}
    for layer in layers.values():
        groups = layer.weight if granularity == "channel" else [layer.weight]
        assert all(len(group.unique()) <= 2**bits - 1 for group in groups)
        assert torch.equal(layer.weight, layer.weight_scale * edits.integer_weight(layer))
    assert edits.weight_bits(result.artifact.edits) == dict.fromkeys(layers, bits)
    assert result.artifact.properties == {TRAINED, WEIGHT_QUANTIZED}
    assert edits.activation_grid(result.artifact.edits) is None


def test_the_incoming_model_is_left_as_it_was():
    before = start()
    digest = artifact.digest(before)
    stage(MinMax()).run({"model": before}, context())
    assert artifact.digest(before) == digest
    assert not hasattr(before.model, CHILD)


def test_masked_weights_stay_zero_and_an_empty_channel_too():
    given = start()
    mask = torch.rand(8, 2, 3, 3) < 0.5
    mask[3] = False
    edits.set_mask_(given.model.stem, mask)
    given = replace(given, edits=({"kind": "mask", "layers": ["stem"]},))
    result = stage(bits=3).run({"model": given}, context()).artifact
    artifact.check(result)
    assert not result.model.stem.weight[~mask].any()
    assert torch.equal(result.model.stem.weight_mask, mask)
    assert [e["kind"] for e in result.edits] == ["mask", "weight_grid"]


def test_batchnorm_is_measured_on_the_quantized_weights():
    measuring = stage(bits=2, batchnorm="measure", batchnorm_images=96)
    result = measuring.run({"model": start()}, context()).artifact
    inputs = Noise().prepare(Noise().split("train").inputs)
    outputs = result.model.stem(inputs)
    torch.testing.assert_close(result.model.bn1.running_mean, outputs.mean((0, 2, 3)))


def test_kept_statistics_are_those_of_the_start_and_shifted_ones_follow_the_weights():
    given = start()
    for values in (given.model.bn1.running_mean, given.model.bn1.running_var):
        torch.nn.init.uniform_(values, 0.5, 1.5)
    kept = stage(bits=2, batchnorm="keep").run({"model": given}, context()).artifact.model
    assert torch.equal(kept.bn1.running_mean, given.model.bn1.running_mean)
    shifted = stage(bits=2).run({"model": given}, context()).artifact.model
    wanted = deepcopy(kept)
    shift_batchnorm_(wanted, given.model, context(), 64)
    for name, value in wanted.state_dict().items():
        assert torch.equal(shifted.state_dict()[name], value), name
    assert not torch.equal(shifted.bn1.running_mean, kept.bn1.running_mean)


@pytest.mark.parametrize("observer", [MinMax(), Percentile(99.5)])
def test_activations_are_on_uint8_grids_that_follow_the_calibration_images(observer, tmp_path):
    given = start()
    result = stage(observer).run({"model": given}, context())
    made = result.artifact
    assert made.properties == {TRAINED, WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED}
    artifact.check(made)
    edit = edits.activation_grid(made.edits)
    assert edit["bits"] == 8
    assert len(edit["sites"]) == 6
    first = made.model.get_submodule(CHILD)[0]
    if isinstance(observer, MinMax):
        inputs = Noise().prepare(Noise().split("train").inputs)
        low, high = inputs.min().item(), inputs.max().item()
        assert first.scale.item() == pytest.approx((high - low) / 255)
        assert first.zero_point.item() == round(-low * 255 / (high - low))
    assert len(first(images()).unique()) <= 256
    weights_only = stage().run({"model": given}, context()).artifact.model
    error = (made.model(images()) - weights_only(images())).abs().max()
    assert 0 < error < 0.1
    artifact.save(made, tmp_path)
    loaded = artifact.load(tmp_path, lambda config: Net(), "")
    assert torch.equal(loaded.model(images()), made.model(images()))


def test_two_runs_give_the_same_digest_and_another_seed_another():
    def digest(seed: int) -> str:
        seeded = replace(context(), seed=seed)
        return artifact.digest(stage(MinMax()).run({"model": start()}, seeded).artifact)

    assert digest(3) == digest(3) != digest(4)


def test_calibrating_again_after_weights_change_moves_the_ranges():
    made = stage(Percentile(99)).run({"model": start()}, context()).artifact
    edit = edits.activation_grid(made.edits)
    model = deepcopy(made.model)
    before = [g.scale.item() for g in model.get_submodule(CHILD)]
    calibrate_(model, edit, context())
    assert [g.scale.item() for g in model.get_submodule(CHILD)] == before
    with torch.no_grad():
        model.bn1.weight.mul_(3)
        model.bn1.bias.mul_(3)
    calibrate_(model, edit, context())
    after = [g.scale.item() for g in model.get_submodule(CHILD)]
    assert after[0] == before[0]
    assert after[1] == pytest.approx(3 * before[1], rel=1e-3)


def test_a_range_that_is_not_finite_names_its_site():
    given = start()
    given.model.fc.bias.data.fill_(0.0)
    given.model.bn2.weight.data.fill_(math.inf)
    with pytest.raises(CheckFailedError, match=r"activation range of bn2:batch_norm is not"):
        stage(MinMax()).run({"model": given}, context())


def test_an_observer_that_saw_no_data_names_its_site():
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, x):
            rest = F.relu(x[:, :0])
            return self.fc(x.mean((2, 3))) + rest.sum()

    with pytest.raises(CheckFailedError, match=r":relu: its observer saw no data"):
        stage(MinMax()).run({"model": start(Empty())}, context())


class Mixed(nn.Module):
    """Layers of every fate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.standardised = nn.Conv2d(4, 4, 1)
        self.embedding = nn.Embedding(3, 4)
        self.unused = nn.Linear(4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)
        self.right.weight = self.left.weight
        self.out = nn.Linear(4, 3)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        x = F.relu(self.up(self.conv(x))) + self.position
        weight = self.standardised.weight
        x = F.conv2d(x, weight - weight.mean(), self.standardised.bias)
        x = x.mean((2, 3)) + self.embedding(torch.zeros(len(x), dtype=torch.long))
        return self.out(self.right(torch.tanh(self.left(x))))


def test_coverage_names_every_layer_and_why_it_stayed_in_float(tmp_path):
    given = start(Mixed())
    result = stage(MinMax(), bits=4).run({"model": given}, context())
    rows = {row.layer: row for row in result.coverage}
    assert {name: row.detail for name, row in rows.items()} == {
        "model": "left float: only convolutions, linear layers and embeddings are quantized",
        "conv": "4-bit per channel",
        "up": "left float: only convolutions, linear layers and embeddings are quantized",
        "standardised": "left float: its weight also goes through mean, sub",
        "embedding": "left float: its weight also goes through linear",
        "unused": "left float: not used in the forward pass",
        "left": "4-bit per channel",
        "right": "4-bit per channel",
        "out": "left float: its weight also goes through embedding",
    }
    assert rows["conv"].touched == rows["conv"].total == 72
    assert rows["up"].touched == 0
    assert rows["up"].total == 64
    model = result.artifact.model
    for name in ("up", "standardised", "embedding", "unused", "out"):
        old, new = (m.get_parameter(f"{name}.weight") for m in (given.model, model))
        assert torch.equal(old, new)
    assert model.left.weight is model.right.weight
    artifact.check(result.artifact)
    artifact.save(result.artifact, tmp_path)
    loaded = artifact.load(tmp_path, lambda config: Mixed(), "").model
    assert torch.equal(loaded.right.weight_scale, model.left.weight_scale)
    assert torch.equal(loaded(images()), model(images()))


def one_rank(rank: int):
    made = [stage(o).run({"model": start()}, context()).artifact for o in (MinMax(), Percentile())]
    return [(artifact.digest(a), a.model(images()).tolist()) for a in made]


def test_two_ranks_end_with_identical_tensors_close_to_those_of_one(tmp_path):
    results = on_two_ranks(one_rank, tmp_path)
    assert results[0] == results[1]
    alone = stage(MinMax()).run({"model": start()}, context()).artifact.model(images())
    torch.testing.assert_close(torch.tensor(results[0][0][1]), alone, atol=0.05, rtol=0)


def test_powers_of_two_are_the_scales_of_weights_and_of_activations():
    options = {"power_of_two": True, "fold_batchnorm": True, "bits": 5}
    model = stage(MinMax(), **options).run({"model": start()}, context()).artifact.model
    scales = [layer.weight_scale for layer in quantized_layers(model).values()]
    scales += [site.scale for site in model.get_submodule(CHILD)]
    exponents = torch.cat([scale.flatten() for scale in scales]).log2()
    assert torch.equal(exponents, exponents.round())
    assert len(exponents.unique()) > 2


def test_a_reduced_range_has_seven_bits_for_eight_and_leaves_the_rest():
    options = {"reduce_range": True, "bits": 4, "rules": [{"layers": "fc", "bits": 8}]}
    result = stage(**options).run({"model": start()}, context())
    bits = edits.weight_bits(result.artifact.edits)
    assert bits == {"stem": 4, "depthwise": 4, "grouped": 4, "fc": 7}
    assert edits.integer_weight(result.artifact.model.fc).abs().max() == 63
