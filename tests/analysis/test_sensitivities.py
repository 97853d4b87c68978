"""What fewer bits cost a layer: against exact Hessians, slow loops, and a trained model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.analysis.probe import weight_replaced
from compressbench.analysis.sensitivity.hessian_trace import HessianTrace, hutchinson
from compressbench.analysis.sensitivity.loss_increase import LossIncrease
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid
from compressbench.core.types import Context, DataSpec, Runtime, Split
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.rounding.nearest import Nearest
from tests.analysis.remembered import Remembered


@dataclass(frozen=True)
class Stripes:
    """Pictures whose class is the row that is bright."""

    images: int = 96

    @property
    def spec(self) -> DataSpec:
        return DataSpec("stripes", (1, 5, 4), tuple("abcde"), (0.5,), (0.25,))

    def split(self, name: str) -> Split:
        assert name == "train", "only training images may be seen"
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randint(0, 200, (self.images, 1, 5, 4), generator=generator)
        targets = torch.arange(self.images) % 5
        inputs[torch.arange(self.images), 0, targets] += 55
        return Split(inputs.to(torch.uint8), targets)

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs.float() / 255 - 0.5) / 0.25


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def context() -> Context:
    return Context(Stripes(), Runtime(), 3, Path(), lambda config: None)


def inputs() -> torch.Tensor:
    return Stripes().prepare(Stripes().split("train").inputs)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
        nn.Linear(30, 5),
    )  # fmt: skip
    parameters = list(model.parameters())
    for _ in range(80):
        loss = F.cross_entropy(model(inputs()), Stripes().split("train").targets)
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.data -= 0.3 * gradient
    return model.eval()


def candidates(model: nn.Module, layers="037", widths=(2, 4, 8)) -> dict:
    method = Nearest(Mse())
    rounded = {b: method(model, {n: Grid(b) for n in layers}, context()) for b in widths}
    return {n: {b: rounded[b][n].weight for b in widths} for n in layers}


@pytest.mark.parametrize("sensitivity", [LossIncrease(96, 32), HessianTrace(96, 40, 32)])
def test_fewer_bits_cost_more(trained, sensitivity):
    costs = sensitivity(trained, candidates(trained), context())
    for by_bits in costs.values():
        assert by_bits[2] > 3 * by_bits[4] > 9 * by_bits[8] >= 0


def test_the_loss_increase_is_the_cross_entropy_against_the_models_own_answers(trained):
    """A loop over images and classes, on one batch that normalizes itself."""
    weights = candidates(trained, "3", (2,))
    found = LossIncrease(96, 96)(trained, weights, context())["3"][2]
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    trained.train()
    with torch.no_grad():
        answers = F.softmax(trained(inputs()).double(), 1)
        with weight_replaced(trained, "3", weights["3"][2]):
            changed = F.softmax(trained(inputs()).double(), 1)
    trained.eval().load_state_dict(state)
    slow = sum(
        float(p[k] * (p[k].log() - q[k].log()))
        for p, q in zip(answers, changed, strict=True)
        for k in range(5)
    ) / len(answers)
    assert found == pytest.approx(slow, rel=1e-4)


def test_a_scaled_channel_before_batchnorm_costs_nothing(trained):
    """A stage measures the statistics again: what that undoes is no loss."""
    scaled = {n: {4: trained[int(n)].weight.detach() * 1.3} for n in "037"}
    costs = LossIncrease(96, 32)(trained, scaled, context())
    assert max(costs["0"][4], costs["3"][4]) < 1e-6 < 1e-3 < costs["7"][4]


def test_the_own_weight_costs_nothing(trained):
    own = {"3": {4: trained[3].weight.detach()}}
    for sensitivity in (LossIncrease(96, 32), HessianTrace(96, 8, 32)):
        assert sensitivity(trained, own, context())["3"][4] < 1e-7


def test_hutchinson_finds_the_trace_of_a_quadratic():
    """Signs make it exact for a diagonal Hessian; 0.5 x'Ax has the trace of A otherwise."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(7, 7, generator=generator)
    matrix = root @ root.T
    x = torch.randn(7, generator=generator, requires_grad=True)
    y = torch.randn(3, 2, generator=generator, requires_grad=True)
    curvatures = torch.rand(3, 2, generator=generator)

    def loss(x, y):
        return 0.5 * x @ matrix @ x + 0.5 * (curvatures * y.square()).sum() + x[0] * y[0, 0]

    exact = hutchinson(lambda: loss(x.detach() * 0, y), [y], 1, generator)
    assert float(exact[0]) == pytest.approx(float(curvatures.sum()), rel=1e-5)
    found = hutchinson(lambda: loss(x, y), [x, y], 1000, generator)
    assert float(found[0]) == pytest.approx(float(matrix.trace()), rel=0.1)
    assert float(found[1]) == pytest.approx(float(curvatures.sum()), rel=0.1)


def test_the_trace_of_a_model_is_that_of_its_exact_hessian(trained):
    """The Hessian of the mean divergence in one layer's weights, by autograd, entry by entry."""
    found = HessianTrace(96, 2000, 96).traces(trained, ["7"], context())["7"]
    features = trained.train()[:7](inputs()).detach()
    trained.eval()
    answers = F.log_softmax(features @ trained[7].weight.T + trained[7].bias, 1).detach()

    def loss(weight):
        logits = features @ weight.T + trained[7].bias
        q = F.log_softmax(logits, 1)
        return (answers.exp() * (answers - q)).sum(1).mean()

    hessian = torch.autograd.functional.hessian(loss, trained[7].weight.detach())
    exact = float(hessian.reshape(150, 150).trace())
    assert exact > 0
    assert found == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("options", [{"images": 1}, {"batch_size": 1}, {"images": 2.0}])
def test_options_that_cannot_work_are_refused(options):
    for kind in (LossIncrease, HessianTrace):
        with pytest.raises(UserError, match=f"got {next(iter(options.values()))}"):
            kind(**options)


def test_the_curvature_is_measured_once_whatever_the_widths(trained):
    known = Remembered()
    here = replace(context(), recall=known.recall)
    few = HessianTrace(96, 8, 32)(trained, candidates(trained, widths=(2,)), here)
    more = HessianTrace(96, 8, 32)(trained, candidates(trained, widths=(2, 4)), here)
    assert len(known) == 1
    assert all(few[layer][2] == more[layer][2] for layer in few)
    HessianTrace(96, 16, 32)(trained, candidates(trained, widths=(2,)), here)
    HessianTrace(96, 8, 32)(trained, candidates(trained, "03", (2,)), here)
    HessianTrace(96, 8, 32)(trained, candidates(trained, widths=(2,)), replace(here, seed=4))
    assert len(known) == 4
