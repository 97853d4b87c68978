"""Artifacts: what is saved comes back bit by bit, and what was lost is refused."""

import json
from collections import OrderedDict

import pytest
import torch
from torch import nn

from compressbench.core import artifact as artifacts
from compressbench.core.activation_quantizers import attach_
from compressbench.core.activation_sites import find_sites
from compressbench.core.artifact import check
from compressbench.core.edits import apply_edit_, integer_weight, set_mask_
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Artifact


def build(config):
    torch.manual_seed(0)
    width = config["width"]
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(2, width, 3), norm=nn.BatchNorm2d(width), relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(width, 3),
    )).eval()  # fmt: skip


def quantized(width=5, bits=4):
    """Masked, on a grid, with activation quantizers: every kind of edit but `resize`."""
    model = build({"width": width})
    weight = model.conv.weight
    scale = weight.detach().abs().amax((1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
    with torch.no_grad():
        weight.copy_(torch.round(weight / scale) * scale)
    set_mask_(model.conv, weight.detach().abs() > 0.05)
    model.conv.register_buffer("weight_scale", scale)
    example = torch.rand(4, 2, 6, 5)
    edit = {"kind": "activation_grid", "sites": find_sites(model, example), "bits": 8,
            "symmetric": False, "calibration": {}}  # fmt: skip
    attach_(model, edit)
    for number, site in enumerate(model.activation_quantizers):
        site.set_range_(-0.5 * number, 1.0 + number)
    grid = {"kind": "weight_grid", "layers": {"conv": {"bits": bits, "granularity": "channel"}}}
    edits = ({"kind": "mask", "layers": ["conv"]}, grid, edit)
    return Artifact(model, {"width": width}, edits, frozenset({"trained"}), "k")


def test_comes_back_bit_by_bit(tmp_path):
    before = quantized()
    check(before)
    digest = artifacts.save(before, tmp_path)
    after = artifacts.load(tmp_path, build, "k")
    assert artifacts.digest(after) == digest
    assert after.edits == before.edits
    assert after.properties == before.properties
    x = torch.rand(3, 2, 7, 7)
    assert torch.equal(after.model(x), before.model(x))
    assert after.model.activation_quantizers[1] is not before.model.activation_quantizers[1]


def test_no_pickle_and_only_json_beside_the_tensors(tmp_path):
    artifacts.save(quantized(), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "artifact.json"}
    json.loads((tmp_path / "artifact.json").read_text())


def test_removed_channels_are_replayed_by_shape(tmp_path):
    small, wide = build({"width": 4}), build({"width": 9})
    shapes = {n: list(t.shape) for n, t in small.state_dict().items() if t.ndim}
    edit = {
        "kind": "resize", "tensors": shapes, "removed": {},
        "attributes": {"conv": {"out_channels": 4}, "norm": {"num_features": 4},
                       "fc": {"in_features": 4}},
    }  # fmt: skip
    apply_edit_(wide, edit)
    assert wide.conv.out_channels == 4
    artifacts.save(Artifact(small, {"width": 9}, (edit,), frozenset()), tmp_path)
    x = torch.rand(2, 2, 6, 6)
    assert torch.equal(artifacts.load(tmp_path, build, "").model(x), small(x))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m.conv.weight[~m.conv.weight_mask].fill_(1e-9), None),
        (lambda m: m.conv.weight.masked_fill_(~m.conv.weight_mask, 1e-9), "is no longer zero"),
        (lambda m: m.conv.weight[m.conv.weight_mask][:1].add_(0), None),
        (lambda m: m.conv.weight.add_(m.conv.weight_mask * 0.3 * m.conv.weight_scale), "left"),
        (lambda m: m.conv.weight.mul_(40), "left their 4-bit grid"),
        (lambda m: m.fc.bias[0].fill_(float("nan")), "fc.bias holds NaN"),
        (lambda m: m.norm.running_var.fill_(float("inf")), "norm.running_var holds NaN or inf"),
    ],
)
def test_a_lost_invariant_is_refused(damage, message):
    artifact = quantized()
    with torch.no_grad():
        damage(artifact.model)
    if message is None:  # indexing made a copy: nothing was damaged
        check(artifact)
        return
    with pytest.raises(CheckFailedError, match=message):
        check(artifact)


def test_infinities_that_the_architecture_brought_are_legal_and_new_ones_are_not(tmp_path):
    def masked(config):
        model = build({"width": 3})
        mask = nn.Transformer.generate_square_subsequent_mask(4)
        model.fc.register_buffer("mask", mask)
        return model

    start, model = masked({}), masked({})
    made = Artifact(model, {}, (), frozenset())
    check(made, start)
    with pytest.raises(CheckFailedError, match=r"fc\.mask holds NaN or infinity"):
        check(made, build({"width": 3}))
    artifacts.save(made, tmp_path)
    assert torch.equal(artifacts.load(tmp_path, masked, "").model.fc.mask, start.fc.mask)
    for damage in (float("inf"), float("nan"), -float("inf")):
        model.fc.mask[2, 1] = damage
        with pytest.raises(CheckFailedError, match=r"fc\.mask holds NaN or infinity"):
            check(made, start)
    model.fc.mask[2, 1] = 0
    with torch.no_grad():
        model.fc.bias[0] = float("inf")
    with pytest.raises(CheckFailedError, match=r"fc\.bias holds NaN or infinity"):
        check(made, start)


def test_other_tensors_than_those_stored_are_refused(tmp_path):
    artifacts.save(quantized(), tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    artifacts.save(quantized(bits=3), other)
    (other / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckFailedError, match="do not match their stored digest"):
        artifacts.load(tmp_path, build, "k")


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    artifacts.save(quantized(), tmp_path)
    text = (tmp_path / "artifact.json").read_text()
    (tmp_path / "artifact.json").write_text(text.replace('"mask"', '"masque"'))
    with pytest.raises(CheckFailedError, match="unknown kind of edit 'masque'"):
        artifacts.load(tmp_path, build, "k")


def test_tied_weights_are_stored_once(tmp_path):
    def tied(config):
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        return nn.Sequential(first, second).eval()

    artifact = Artifact(tied({}), {}, (), frozenset())
    artifacts.save(artifact, tmp_path)
    after = artifacts.load(tmp_path, tied, "").model
    assert after[0].weight is after[1].weight
    x = torch.rand(2, 4)
    assert torch.equal(after(x), artifact.model(x))


def test_integers_are_what_the_weights_stand_for():
    layer = quantized().model.conv
    integers = integer_weight(layer)
    assert integers.dtype == torch.int16
    assert torch.allclose(integers * layer.weight_scale, layer.weight)
    assert integers.abs().max() <= 7
