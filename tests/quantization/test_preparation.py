"""Folding, equalization and bias correction as options of the quantize stage."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from compressbench.core import artifact, edits
from compressbench.core.errors import UserError
from compressbench.core.types import TRAINED, Artifact, Context, Runtime
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.preparation.folding import fold_batchnorm_
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.nearest import Nearest
from tests.quantization.preparation_zoo import Depthwise, digits, spread_, trained
from tests.quantization.quantized_net import quantized_layers

ALL = {"fold_batchnorm": True, "equalize": True, "correct_bias": True}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(config) -> object:
    module, _, name = config["_target_"].rpartition(".")
    options = {k: v for k, v in config.items() if k != "_target_"}
    return getattr(importlib.import_module(module), name)(**options)


def context() -> Context:
    return Context(digits(), Runtime(), 3, Path(), build)


def start(model: nn.Module | None = None, edits=()) -> Artifact:
    config = {"_target_": "preparation_zoo.Depthwise"}
    return Artifact(model or trained(), config, tuple(edits), frozenset({TRAINED}))


def quantize(given: Artifact, activation=None, **options):
    sizes = {"batchnorm_images": 128, "calibration_images": 128}
    return Quantize(Nearest(MinMax()), activation, **(sizes | options)).run(
        {"model": given}, context()
    )


def outputs(made: Artifact) -> torch.Tensor:
    with torch.no_grad():
        return made.model(digits().prepare(digits().split("validation").inputs))


def test_masks_hold_and_the_result_loads_as_it_was_saved(tmp_path):
    model = trained()
    mask = torch.rand(model.blocks[1][0].weight.shape) < 0.6
    edits.set_mask_(model.blocks[1][0], mask)
    given = start(model, [{"kind": "mask", "layers": ["blocks.1.0"]}])
    digest = artifact.digest(given)
    made = quantize(given, MinMax(), granularity="tensor", **ALL).artifact
    assert artifact.digest(given) == digest
    assert [e["kind"] for e in made.edits] == ["mask", "fold", "weight_grid", "activation_grid"]
    artifact.check(made)
    assert not made.model.blocks[1][0].weight[~mask].any()
    artifact.save(made, tmp_path)
    again = artifact.load(tmp_path, lambda config: Depthwise(), "key")
    assert torch.equal(outputs(again), outputs(made))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in again.model.modules())


def test_each_option_helps_a_depthwise_net_whose_channel_ranges_differ():
    model = trained()
    edit = fold_batchnorm_(model, torch.zeros(2, 1, 8, 8))
    spread_(model, decades=1.0)
    given = start(model, [edit])
    exact, targets = outputs(given), digits().split("validation").targets
    found = {}
    for bits in (8, 6):
        for name, options in {
            "fold": {},
            "equalize": {"fold_batchnorm": True, "equalize": True},
            "correct": {"correct_bias": True},
            "all": ALL,
        }.items():
            made = outputs(quantize(given, bits=bits, granularity="tensor", **options).artifact)
            correct = (made.argmax(1) == targets).float().mean().item()
            found[bits, name] = ((made - exact).square().mean().item(), correct)
    for bits in (8, 6):
        errors = {name: error for (b, name), (error, _) in found.items() if b == bits}
        assert errors["equalize"] < 0.2 * errors["fold"]
        assert errors["correct"] < 0.7 * errors["fold"]
        assert errors["all"] < errors["equalize"]


def test_without_the_options_nothing_changes_and_what_they_cannot_do_is_said():
    plain = quantize(start()).artifact
    assert [e["kind"] for e in plain.edits] == ["weight_grid"]
    assert isinstance(plain.model.stem[1], nn.BatchNorm2d)
    folded = quantize(start(), fold_batchnorm=True).artifact
    outcome = quantize(Artifact(folded.model, {}, (), frozenset({TRAINED})), fold_batchnorm=True)
    assert outcome.warnings == ("fold_batchnorm: no BatchNorm can be folded; nothing changed",)
    (warning,) = quantize(start(), granularity="tensor").warnings
    assert warning.startswith("granularity=tensor: export folds BatchNorm into 5 layers")


def test_options_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="equalize=true needs fold_batchnorm=true"):
        Quantize(Nearest(MinMax()), equalize=True)
    for name in ALL:
        with pytest.raises(UserError, match=f"{name} must be true or false, got 1"):
            Quantize(Nearest(MinMax()), **{name: 1})
    powers = Quantize(Nearest(MinMax()), power_of_two=True)
    with pytest.raises(UserError, match=r"scales of stem\.0 by BatchNorm stem\.1; set fold_"):
        powers.check_model(trained(), digits().spec)
    with pytest.raises(UserError, match="power_of_two"):
        powers.run({"model": start()}, context())
    Quantize(Nearest(MinMax()), power_of_two=True, fold_batchnorm=True).check_model(
        trained(), digits().spec
    )
    made = quantize(start(), power_of_two=True, fold_batchnorm=True).artifact
    for layer in quantized_layers(made.model).values():
        assert torch.equal(torch.exp2(torch.log2(layer.weight_scale).round()), layer.weight_scale)


def test_the_estimate_counts_both_models_of_the_correction():
    options = {"batchnorm_images": 100, "calibration_images": 40}
    plain, corrected = (
        Quantize(Nearest(MinMax()), MinMax(), correct_bias=flag, **options).passes(1000)
        for flag in (False, True)
    )
    assert plain == (0, 280)
    assert corrected == (0, 360)
