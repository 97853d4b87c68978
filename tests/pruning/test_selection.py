"""Budgets of layers and patterns of zeros, against slow loops and closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from compressbench.pruning.weights.layer_densities import erk, lamp, whole
from compressbench.pruning.weights.patterns import Blocks, Inputs, parse
from compressbench.pruning.weights.selection import Selection

SHAPES = {"stem": (16, 3, 3, 3), "deep": (64, 32, 3, 3), "point": (32, 64, 1, 1), "fc": (10, 64)}


def size(shape) -> int:
    return torch.Size(shape).numel()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 0.9, 0.98])
def test_erk_keeps_the_share_in_all_and_follows_the_shapes(sparsity):
    densities = erk(SHAPES, sparsity)
    total = sum(map(size, SHAPES.values()))
    kept = sum(densities[n] * size(shape) for n, shape in SHAPES.items())
    assert kept == pytest.approx((1 - sparsity) * total)
    ratio = {n: sum(shape) / size(shape) for n, shape in SHAPES.items()}
    sparse = [n for n in SHAPES if densities[n] < 1]
    for a, b in itertools.combinations(sparse, 2):
        assert densities[a] / densities[b] == pytest.approx(ratio[a] / ratio[b])
    for n in SHAPES.keys() - set(sparse):  # dense because more would have been its due
        assert all(ratio[n] >= ratio[m] for m in sparse)


def test_whole_numbers_add_up():
    sizes = {n: size(shape) for n, shape in SHAPES.items()}
    for sparsity in (0.0, 0.511, 0.9, 0.97):
        kept = whole(erk(SHAPES, sparsity), sizes, sparsity)
        assert sum(kept.values()) == sum(sizes.values()) - round(sparsity * sum(sizes.values()))
        assert all(1 <= kept[n] <= sizes[n] for n in sizes)
    assert min(whole({"a": 0.0, "b": 0.5}, {"a": 4, "b": 4}, 0.75).values()) == 1


def test_lamp_is_a_ranking_by_its_scores():
    generator = torch.Generator().manual_seed(0)
    squares = {
        n: torch.randn(count, generator=generator).square() * scale
        for n, count, scale in (("a", 30, 1.0), ("b", 17, 1e4), ("c", 50, 0.01))
    }
    zeros = {n: torch.zeros_like(s, dtype=torch.bool) for n, s in squares.items()}
    everything = []
    for name, values in squares.items():
        for value in values.tolist():
            larger = sum(other for other in values.tolist() if other >= value)
            everything.append((value / larger, name))
    everything.sort()
    for share in (0.2, 0.5, 0.9):
        survivors = [name for _, name in everything[round(share * 97) :]]
        expected = {name: survivors.count(name) for name in squares}
        assert lamp(squares, zeros, share) == expected
        scaled = {n: s * 7.0 if n == "a" else s for n, s in squares.items()}
        assert lamp(scaled, zeros, share) == expected, "a layer's scale means nothing"


def selected(selection: Selection, layers: dict[str, nn.Module]):
    scores = {n: layer.weight.detach().abs() for n, layer in layers.items()}
    zeros = {n: layer.weight.detach() == 0 for n, layer in layers.items()}
    return selection.masks(layers, scores, zeros)


def some_layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "conv": nn.Conv2d(8, 6, 3), "group": nn.Conv2d(16, 4, (1, 2), groups=2),
        "up": nn.ConvTranspose2d(8, 4, 2), "fc": nn.Linear(16, 5),
    }  # fmt: skip


@pytest.mark.parametrize("scope", ["global", "layer", "erk", "lamp"])
def test_every_scope_drops_the_same_number_in_all_and_the_least_of_each_layer(scope):
    layers = some_layers()
    masks = selected(Selection(0.6, scope=scope), layers)
    total = sum(m.numel() for m in masks.values())
    gone = sum(int((~m).sum()) for m in masks.values())
    assert abs(gone - 0.6 * total) <= (0.5 if scope != "layer" else 2)
    for name, mask in masks.items():
        weight = layers[name].weight.abs()
        assert mask.all() or weight[~mask].max() <= weight[mask].min()


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (4, 8), (1, 2), (3, 4)])
def test_n_of_m_keeps_the_most_important_of_each_group(kept, group):
    layers = some_layers()
    for name, mask in selected(Selection(None, pattern=f"{kept}:{group}"), layers).items():
        weight = layers[name].weight.detach().abs()
        if name == "up":  # [in, out, kernel..]
            weight, mask = weight.transpose(0, 1), mask.transpose(0, 1)
        seen = 0
        for o in range(weight.shape[0]):
            for place in itertools.product(*map(range, weight.shape[2:])):
                for start in range(0, weight.shape[1], group):
                    at = (o, slice(start, start + group), *place)
                    assert int(mask[at].sum()) == kept
                    assert weight[at][~mask[at]].max() <= weight[at][mask[at]].min()
                    seen += group
        assert seen == weight.numel()


def test_n_of_m_counts_zeros_that_are_there():
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[0] = torch.tensor([0.0, 5.0, 0.0, 0.0])
    (mask,) = selected(Selection(None, pattern="2:4"), {"fc": layer}).values()
    assert mask[0].tolist() == [False, True, False, False]
    assert mask.sum(1).tolist() == [1, 2, 2]


@pytest.mark.parametrize("scope", ["global", "layer", "erk", "lamp"])
def test_blocks_go_together(scope):
    layers = {n: m for n, m in some_layers().items() if n != "fc"}
    masks = selected(Selection(0.5, scope=scope, pattern="2x4"), layers)
    blocks = 0
    for name, mask in masks.items():
        mask = mask.transpose(0, 1) if name == "up" else mask
        for o in range(0, mask.shape[0], 2):
            for i in range(0, mask.shape[1], 4):
                for place in itertools.product(*map(range, mask.shape[2:])):
                    block = mask[(slice(o, o + 2), slice(i, i + 4), *place)]
                    assert bool(block.all()) or not bool(block.any())
                    blocks += 1
    total = sum(m.numel() for m in masks.values())
    assert blocks == total // 8
    assert sum(int(m.sum()) for m in masks.values()) == pytest.approx(total / 2, abs=8)


def test_the_block_with_the_least_sum_goes():
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[9.0, 0.1, 2.0, 2.0], [0.1, 0.1, 2.0, 2.0]]))
    (mask,) = selected(Selection(0.5, pattern="2x2"), {"fc": layer}).values()
    assert mask.tolist() == [[True, True, False, False]] * 2


def test_what_does_not_fit():
    conv = nn.Conv2d(6, 9, 3)
    assert Inputs(2, 4).misfit(conv) == "4 does not divide its 6 inputs"
    assert Blocks(2, 1).misfit(conv) == "2 does not divide its 9 outputs"
    assert not Blocks(3, 2).misfit(conv)
    assert Inputs(1, 3).misfit(nn.Conv2d(6, 9, 3, groups=3)) == "3 does not divide its 2 inputs"


@pytest.mark.parametrize(
    "text", ["4:2", "2:2", "0:4", "2", "ab", "2:4:8", "1x1", "0x4", 124, "-1:2"]
)
def test_no_pattern(text):
    with pytest.raises(UserError, match="pattern must be N:M with 0 < N < M"):
        parse(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sparsity": 0.5, "pattern": "2:4"}, "2:4 is a target of its own: sparsity and"),
        ({"sparsity": None, "pattern": "2:4", "scope": "erk"}, "scope=erk does not work with"),
        ({"sparsity": None, "threshold": 0.1, "scope": "lamp"}, "needs sparsity, got thresh"),
        ({"sparsity": 0.5, "activation_threshold": 0.1}, "needs threshold: set both"),
        ({"sparsity": None, "pattern": "4x1"}, "exactly one of sparsity and threshold"),
        (
            {"sparsity": 0.5, "scope": "uniform"},
            "scope must be global, layer, erk, lamp, sensitivity, got",
        ),
    ],
)
def test_targets_that_contradict_each_other(options, text):
    with pytest.raises(UserError, match=text):
        Selection(**options)
