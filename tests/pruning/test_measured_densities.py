"""Shares by measured cost: curves as pruned by hand, the cheapest split, exact counts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.prune import Prune
from compressbench.pruning.prune_gradual import PruneGradually
from compressbench.pruning.weights.apply import weight_scores
from compressbench.pruning.weights.measured_densities import SHARES, cheapest, curves
from tests.pruning.pruned_net import LAYERS, Noise, context, trained
from tests.pruning.schedule_net import FIT


def layers_of(model):
    return {name: model.get_submodule(name) for name in LAYERS}


def cost_by_hand(name: str, zeros: int) -> float:
    """KL from the dense model's answers, BatchNorm by the batch, some smallest weights zero."""
    whole, model = trained().model, trained().model
    weight = model.get_submodule(name).weight
    with torch.no_grad():
        weight.view(-1)[weight.abs().flatten().argsort()[:zeros]] = 0.0
    images = Noise().prepare(Noise().split("train").inputs)
    for one in (whole, model):
        one.bn.train()
    with torch.no_grad():
        return float(F.kl_div(model(images).log_softmax(1), whole(images).log_softmax(1),
                              reduction="batchmean", log_target=True))  # fmt: skip


def test_curves_are_those_of_a_model_pruned_by_hand():
    model = trained().model.eval()
    layers = layers_of(model)
    scores = weight_scores(Magnitude(), model, layers, context())
    for name, curve in curves(model, layers, scores, context()).items():
        assert curve[0] == (0.0, 0.0)
        assert len(curve) > 3
        for zeros, cost in curve[1:]:
            assert zeros in {round(s * layers[name].weight.numel()) for s in SHARES}
            assert cost == pytest.approx(cost_by_hand(name, int(zeros)), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_no_other_split_on_the_measured_points_is_cheaper(seed):
    """Convex curves, against every combination of points that removes as many weights."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a": 10, "b": 20, "c": 40}
    costs = {}
    for name, size in sizes.items():
        zeros = [0, size // 5, size // 2, size - 1]
        rates = torch.rand(3, generator=generator).sort().values.tolist()
        points = [(0.0, 0.0)]
        for (a, b), rate in zip(itertools.pairwise(zeros), rates, strict=True):
            points.append((float(b), points[-1][1] + rate * (b - a)))
        costs[name] = points

    def price(name: str, zeros: float) -> float:
        pairs = itertools.pairwise(costs[name])
        (a, y), (b, z) = next(p for p in pairs if p[0][0] <= zeros <= p[1][0] + 1e-9)
        return y + (z - y) * (zeros - a) / (b - a)

    for combination in itertools.product(*costs.values()):
        removed = sum(zeros for zeros, _ in combination)
        densities = cheapest(costs, sizes, removed / 70)
        gone = {name: (1 - densities[name]) * sizes[name] for name in sizes}
        assert sum(gone.values()) == pytest.approx(removed)
        found = sum(price(name, zeros) for name, zeros in gone.items())
        assert found <= sum(cost for _, cost in combination) + 1e-9


@pytest.mark.parametrize("sparsity", [0.3, 0.77, 0.99])
def test_as_many_weights_as_asked_for_are_zero_and_the_split_is_its_own(sparsity):
    def zeros(scope: str) -> dict[str, int]:
        outcome = Prune(Magnitude(), sparsity, scope=scope).run({"model": trained()}, context())
        layers = layers_of(outcome.artifact.model)
        return {name: int((layer.weight == 0).sum()) for name, layer in layers.items()}

    total = sum(layer.weight.numel() for layer in layers_of(trained().model).values())
    found = zeros("sensitivity")
    assert sum(found.values()) == round(sparsity * total)
    if sparsity < 0.9:
        assert found not in (zeros("global"), zeros("layer"))


def test_it_spreads_a_sparsity_measured_once():
    with pytest.raises(UserError, match="scope=sensitivity needs sparsity"):
        Prune(Magnitude(), None, threshold=0.1, scope="sensitivity")
    with pytest.raises(UserError, match="would be measured at each update"):
        PruneGradually(Magnitude(), 0.5, epochs=1, **FIT, scope="sensitivity")
