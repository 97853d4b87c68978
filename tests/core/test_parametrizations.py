"""Parametrized weights become plain ones of the same value, here and when an artifact is loaded."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from compressbench.core.edits import apply_edit_
from compressbench.core.parametrizations import (
    fold_,
    parametrization_names,
    parametrized,
    plain_copy,
)


class Doubled(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, weight):
        return 2.0 * weight


def own(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())
    parametrize.register_parametrization(layer, "bias", Doubled())
    return layer


KINDS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "Doubled": own,
}


def network(kind):
    torch.manual_seed(0)
    layer = KINDS[kind](nn.Linear(5, 4))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 3)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_model_computes_the_same_to_the_bit(kind):
    model, inputs = network(kind), torch.randn(7, 5)
    assert parametrization_names(model[0]) == kind
    expected = model(inputs)
    folded = plain_copy(model)
    assert folded(inputs).equal(expected)
    assert type(folded[0]) is nn.Linear
    assert parametrized(folded) == {}
    assert {n for n, _ in folded.named_parameters()} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert model(inputs).equal(expected)  # the model itself stays parametrized
    assert parametrization_names(model[0]) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_edit_makes_the_same_structure_of_a_fresh_model(kind):
    model, fresh = network(kind), network(kind)
    for edit in fold_(model):
        apply_edit_(fresh, edit)
    assert list(fresh.state_dict()) == list(model.state_dict())
    fresh.load_state_dict(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainable", [True, False])
def test_a_frozen_tensor_stays_a_frozen_parameter(kind, trainable):
    folded = plain_copy(network(kind).requires_grad_(trainable))
    assert {p.requires_grad for p in folded.parameters()} == {trainable}
    assert isinstance(folded[0].weight, nn.Parameter)


def test_spectral_norm_is_folded_as_in_eval_mode():
    """In training, every use of the weight changes its vectors a little."""
    model = network("spectral_norm").train()
    vectors = deepcopy(dict(model.named_buffers()))
    folded = plain_copy(model)
    assert folded.training
    assert all(b.equal(vectors[n]) for n, b in model.named_buffers())
    assert folded[0].weight.equal(model.eval()[0].weight)


def test_a_plain_model_is_not_copied():
    model = nn.Linear(2, 2)
    assert plain_copy(model) is model
    assert fold_(model) == []
