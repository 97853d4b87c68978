"""Sensitivity of layers to pruning: against a model that is pruned by hand; its pictures."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from compressbench.core import artifact
from compressbench.core.errors import UserError
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.criteria.wanda import Wanda
from compressbench.pruning.sensitivity import SensitivityCurves
from compressbench.results.pruning_plots import layers_left, sensitivity_curves
from tests.pruning.pruned_net import LAYERS, Net, Noise, context, trained


def by_hand(name: str, sparsity: float) -> tuple[float, float]:
    """Accuracy and loss with the smallest weights of one layer zero, BatchNorm by the batch."""
    model = trained().model
    weight = model.get_submodule(name).weight
    with torch.no_grad():
        count = round(sparsity * weight.numel())
        weight.view(-1)[weight.abs().flatten().argsort()[:count]] = 0.0
    own = Noise()
    split = own.split("train")
    model.bn.train()
    logits = model(own.prepare(split.inputs)).detach().double()
    accuracy = (logits.argmax(1) == split.targets).double().mean()
    return float(accuracy), float(F.cross_entropy(logits, split.targets))


def test_each_layer_alone_and_nothing_is_changed():
    start = trained()
    before = artifact.digest(start)
    stage = SensitivityCurves(Magnitude(), sparsities=[0.9, 0.5], images=64, batch_size=64)
    outcome = stage.run({"model": start}, context())
    assert artifact.digest(outcome.artifact) == before
    rows = outcome.tables["sensitivity"]
    assert [(r["layer"], r["sparsity"]) for r in rows] == [
        (n, s) for n in LAYERS for s in (0.0, 0.5, 0.9)
    ]
    for row in rows:
        accuracy, loss = by_hand(row["layer"], row["sparsity"])
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
    assert json.loads(json.dumps(rows)) == rows


def test_only_some_layers_by_another_criterion():
    stage = SensitivityCurves(Wanda(32), sparsities=[0.5], layers=["f*"], images=32)
    rows = stage.run({"model": trained()}, context()).tables["sensitivity"]
    assert {row["layer"] for row in rows} == {"fc"}
    with pytest.raises(UserError, match="the nearest name is stem"):
        SensitivityCurves(Magnitude(), skip=["stm"]).check_model(Net(), Noise().spec)


@pytest.mark.parametrize("value", [[], [1.0], [-0.1], ["a"], "0.5"])
def test_sparsities_are_checked(value):
    with pytest.raises(UserError, match="sparsities must be a"):
        SensitivityCurves(Magnitude(), sparsities=value)


def test_pictures_show_every_layer():
    rows = [
        {"layer": n, "weights": 10, "sparsity": s, "accuracy": 0.9 - s / 3, "loss": s}
        for n in ("a", "b<c") for s in (0.0, 0.5)
    ]  # fmt: skip
    coverage = [
        {"layer": "a", "kind": "Conv2d", "total": 10, "touched": 4, "detail": "8 → 4 channels"},
        {"layer": "bn", "kind": "BatchNorm2d", "total": 0, "touched": 0, "detail": ""},
    ]
    report = {
        "stages": [
            {"name": "s", "kind": "sensitivitycurves", "tables": {"sensitivity": rows},
             "coverage": []},
            {"name": "prune", "kind": "prunechannels", "tables": {}, "coverage": coverage},
        ]
    }  # fmt: skip
    curves, (table,) = sensitivity_curves(report), layers_left(report)
    assert [line.name for line in curves.series] == ["a (10)", "b<c (10)"]
    assert [point.x for point in curves.series[0].points] == [0.0, 0.5]
    assert "50 % zero: accuracy 73.33 %, loss 0.500" in curves.series[1].points[1].text
    assert curves.series[0].colour != curves.series[1].colour
    assert "prune: 60.0 % of 10 weights left" in table
    assert table.count("<tr>") == 2  # the heading, and the layer that has weights
    assert "8 → 4 channels" in table
    assert sensitivity_curves({"stages": []}) is None
    assert layers_left({"stages": []}) == []
