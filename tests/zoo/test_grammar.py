"""Random networks come out right or are refused before training."""

from __future__ import annotations

import pytest
import torch

from tests.zoo.grammar import RandomNet, config_of_seed
from tests.zoo.running import cut_channels, run_recipe

SEEDS = [seed if seed < 12 else pytest.param(seed, marks=pytest.mark.long) for seed in range(200)]
RUNS = [
    (0, "prune_then_quant"),
    (3, "prune_channels"),
    *(
        pytest.param(seed, recipe, marks=pytest.mark.long)
        for seed in range(4, 40)
        for recipe in ("prune_channels", "prune_then_quant")
    ),
]


def made(seed: int) -> RandomNet:
    torch.manual_seed(0)
    return RandomNet((1, 8, 8), 10, seed).eval()


def test_a_network_is_a_function_of_its_seed():
    first, same, other = (made(seed) for seed in (5, 5, 6))
    assert repr(first) == repr(same)
    assert repr(first) != repr(other)
    weights = same.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())


def test_networks_give_the_classes_of_any_batch():
    for seed in range(60):
        assert made(seed)(torch.randn(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("seed", SEEDS)
def test_removed_channels_change_nothing_else(seed):
    ended = cut_channels(config_of_seed(seed))
    assert ended.kind in ("right", "refused"), ended


@pytest.mark.parametrize(("seed", "recipe"), RUNS)
def test_a_recipe_ends_right_or_is_refused_before_training(seed, recipe, tmp_path):
    ended = run_recipe(config_of_seed(seed), recipe, tmp_path)
    assert ended.kind in ("right", "refused"), ended
