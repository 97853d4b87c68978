"""Pruning a quantized model: integers stay on their grids, or it is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from compressbench.core import edits
from compressbench.core.activation_quantizers import CHILD, activations_in_float
from compressbench.core.errors import UserError
from compressbench.core.types import Artifact
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.criteria.sparsegpt import SparseGpt
from compressbench.pruning.criteria.wanda import Wanda
from compressbench.pruning.prune import Prune
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.nearest import Nearest
from tests.pruning.pruned_net import LAYERS, WEIGHTS, context, pruned, trained


def quantized(bits: int = 8, activation: object = None) -> Artifact:
    stage = Quantize(Nearest(MinMax()), activation, bits=bits)
    return stage.run({"model": trained()}, context()).artifact


def test_integers_stay_on_their_grid_and_activations_are_calibrated_again():
    start = quantized(activation=MinMax())
    result = pruned(Prune(Magnitude(), sparsity=0.5, batchnorm="measure"), start).artifact
    before = {n: edits.integer_weight(start.model.get_submodule(n)) for n in LAYERS}
    after = {n: edits.integer_weight(result.model.get_submodule(n)) for n in LAYERS}
    for name in LAYERS:
        assert torch.equal(after[name][after[name] != 0], before[name][after[name] != 0])
    assert sum(int((v == 0).sum()) for v in after.values()) == round(0.5 * WEIGHTS)
    own = context()
    images = own.data.prepare(own.data.split("train").inputs)
    outputs = result.model.stem(images)
    torch.testing.assert_close(result.model.bn.running_mean, outputs.mean((0, 2, 3)))
    grids = list(result.model.get_submodule(CHILD))
    site = next(
        n
        for n, s in enumerate(edits.activation_grid(result.edits)["sites"])
        if s["layer"] == "" and s["function"] == "relu"
    )
    largest = F.relu(result.model.bn(outputs)).max()
    torch.testing.assert_close(grids[site].scale * 255, largest)
    old = list(start.model.get_submodule(CHILD))[site].scale
    assert not torch.equal(grids[site].scale, old)


def test_quantizers_are_back_after_they_were_passed():
    model = quantized(activation=MinMax()).model
    inputs = torch.randn(4, 2, 8, 8)
    rounded = model(inputs)
    with pytest.raises(RuntimeError, match="stop"), activations_in_float(model):
        assert not torch.equal(model(inputs), rounded)
        raise RuntimeError("stop")
    assert torch.equal(model(inputs), rounded)


@pytest.mark.parametrize(
    ("bits", "stage", "text"),
    [
        (4, Prune(Magnitude(), sparsity=0.3), "needs 8-bit weights, stem has 4"),
        (8, Prune(Magnitude(), sparsity=0.6), r"at most 0\.5 of the weights, got 0\.599"),
        (8, Prune(Magnitude(), threshold=9.0), "at most 0.5"),
    ],
)
def test_coarse_grids_and_many_zeros_are_refused_on_grids(bits, stage, text):
    with pytest.raises(UserError, match=text):
        pruned(stage, quantized(bits))


def test_weights_on_grids_cannot_be_moved():
    for stage in (Prune(SparseGpt(64), sparsity=0.3),):
        with pytest.raises(UserError, match="updates weights, but quantized weights must stay"):
            pruned(stage, quantized())
        with pytest.raises(UserError, match="updates weights"):
            stage.check_line([Quantize(Nearest(MinMax()), None)])
    half = Prune(Magnitude(), pattern="1:4")
    with pytest.raises(UserError, match=r"at most 0\.5, got 0\.75"):
        half.check_line([Quantize(Nearest(MinMax()), None)])
    assert pruned(Prune(Wanda(64), pattern="2:4"), quantized(activation=MinMax())).artifact
