"""Weight criteria: every YAML of the group, and what the built-in ones say of known weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compressbench.core.types import Context, Runtime
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.criteria.magnitude import Magnitude

CONTEXT = Context(None, Runtime(), 0, Path(), lambda config: config)


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"conv": nn.Conv2d(4, 6, 3, groups=2), "fc": nn.Linear(5, 3)}


@pytest.mark.parametrize("criterion", [Magnitude(), L2()])
def test_one_finite_score_a_weight_and_nothing_changed(criterion):
    own = layers()
    before = {name: layer.weight.clone() for name, layer in own.items()}
    scores = criterion(own, CONTEXT)
    assert {n: s.shape for n, s in scores.items()} == {n: m.weight.shape for n, m in own.items()}
    for name, score in scores.items():
        assert not score.requires_grad
        assert bool((score >= 0).all())
        assert torch.equal(own[name].weight, before[name])
        assert score.data_ptr() != own[name].weight.data_ptr()


def test_a_channel_has_the_norm_of_its_weights():
    own = layers()
    for name, layer in own.items():
        flat = layer.weight.flatten(1)
        l1 = Magnitude()(own, CONTEXT)[name].flatten(1).sum(1)
        l2 = L2()(own, CONTEXT)[name].flatten(1).sum(1)
        torch.testing.assert_close(l1, torch.linalg.vector_norm(flat, 1, dim=1))
        torch.testing.assert_close(l2, torch.linalg.vector_norm(flat, 2, dim=1) ** 2)
