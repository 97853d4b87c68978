"""SparseGPT: its scores and moves are those of a slow loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.pruning.criteria.sparsegpt import SparseGpt
from tests.pruning.criteria.criteria_net import IMAGES, context, images, layers, net, seen_inputs


def hessian_of(model: nn.Module, name: str) -> Tensor:
    rows = seen_inputs(model, name)[0].double()
    if name == "stem":
        rows = F.unfold(rows, (3, 2), stride=(2, 1), padding=(1, 0)).transpose(1, 2)
    rows = rows.reshape(-1, rows.shape[-1])
    return rows.T @ rows


@pytest.mark.parametrize("name", ["stem", "fc"])
def test_sparsegpt_scores_and_moves_equal_a_slow_loop(name):
    model = net()
    layer = model.get_submodule(name)
    criterion = SparseGpt(IMAGES, damping=0.02, drift=False)
    hessian = hessian_of(model, name)
    hessian += torch.eye(len(hessian)) * 0.02 * hessian.diagonal().mean()
    weight = layer.weight.detach().double().flatten(1)
    scores = torch.zeros_like(weight)
    for j in range(weight.shape[1]):  # the error of the outputs when w_j alone goes, at best
        rest = torch.linalg.inv(hessian[j:, j:])
        scores[:, j] = weight[:, j] ** 2 / rest[0, 0]
    found = criterion.of_model(model, layers(model, name), context())[name]
    torch.testing.assert_close(found.flatten(1).double(), scores, rtol=1e-3, atol=1e-6)

    for norm in (model.bn, model.bn2):
        norm.train().momentum = 0.0  # those that will be measured
    batch_normed = hessian_of(model, name)
    model.eval()
    hessian = batch_normed + torch.eye(len(hessian)) * 0.02 * batch_normed.diagonal().mean()
    mask = scores > scores.median()
    moved = weight.clone()
    for j in range(weight.shape[1]):
        gone = torch.where(mask[:, j], 0.0, moved[:, j])
        rest = torch.linalg.inv(hessian[j:, j:])
        moved[:, j:] -= gone[:, None] * (rest[0] / rest[0, 0])
    masks = {name: mask.view_as(layer.weight)}
    measuring = replace(context(), batchnorm="measure")
    result = criterion.update(model, masks, measuring)[name]
    assert not bool(result[~masks[name]].any())
    raw = batch_normed
    change, plain = moved - weight, weight * ~mask
    better = ((change @ raw) * change).sum(1) < ((plain @ raw) * plain).sum(1)
    assert bool(better.any())
    expected = torch.where(better[:, None], moved, weight * mask)
    torch.testing.assert_close(result.flatten(1).double(), expected, rtol=1e-3, atol=1e-5)


def test_sparsegpt_makes_up_for_earlier_layers():
    model = net()
    own = layers(model, "stem", "group", "fc")
    masks = {n: torch.rand(m.weight.shape) > 0.3 for n, m in own.items()}
    errors = []
    for drift in (True, False):
        pruned = net()
        weights = SparseGpt(IMAGES, drift=drift).update(model, masks, context())
        with torch.no_grad():
            for name, weight in weights.items():
                pruned.get_submodule(name).weight.copy_(weight)
            for layer in (pruned.bn, pruned.bn2):
                layer.train()
            errors.append(float((pruned(images()[0]) - model(images()[0])).square().mean()))
    assert errors[0] < errors[1]


def test_sparsegpt_says_which_layers_it_does_not_know():
    model = net()
    with pytest.raises(UserError, match="does not support ConvTranspose2d: skip up"):
        SparseGpt(IMAGES).of_model(model, layers(model, "up"), context())
