"""Parts of a quantized model are left in float one at a time, and nothing else changes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from compressbench.cli.left_out import overrides, pasted
from compressbench.config.compose import compose_config
from compressbench.config.groups import config_folder
from compressbench.core import artifact as artifacts
from compressbench.core.activation_quantizers import CHILD, activations_in_float
from compressbench.core.activation_sites import site_name
from compressbench.core.edits import activation_grid, weight_bits
from compressbench.core.journal import Journal
from compressbench.quantization.layer_costs import (
    ACTIVATION,
    WEIGHTS,
    Cost,
    Part,
    Quality,
    costs,
    float_parameters,
    left_out,
    parts_of,
    worst,
)
from compressbench.quantization.observers.dynamic import Dynamic
from compressbench.quantization.observers.minmax import MinMax
from tests.quantization.quantized_net import Noise, context, images, stage, start

STAGES = {
    "static": stage(MinMax(), bits=3, activation_bits=4, rules=[]),
    "dynamic": stage(Dynamic(), bits=3, rules=[]),
    "weights": stage(bits=4, fold_batchnorm=True, equalize=True),
}


def made(name):
    given = start()
    quantize = STAGES[name]
    outcome = quantize.run({"model": given}, context())
    floats = float_parameters(quantize, given, outcome.artifact, Noise().spec)
    rows = outcome.tables.get("activations", [])
    return given, outcome.artifact, floats, parts_of(outcome.artifact, floats, rows)


def test_the_parts_are_all_layers_and_all_activations_the_noisiest_first():
    _, result, _, parts = made("static")
    names = {(part.kind, part.name) for part in parts}
    sites = {site_name(site) for site in activation_grid(result.edits)["sites"]}
    layers = {"stem", "depthwise", "grouped", "fc"}
    assert names == {(WEIGHTS, n) for n in layers} | {(ACTIVATION, n) for n in sites}
    assert {part.bits for part in parts if part.kind == WEIGHTS} == {3}
    assert {part.bits for part in parts if part.kind == ACTIVATION} == {4}
    doubts = [part.suspicion for part in parts]
    assert doubts == sorted(doubts, reverse=True) and doubts[0] > 0
    assert {part.kind for part in made("dynamic")[3]} == {WEIGHTS}


@pytest.mark.parametrize("name", STAGES)
def test_one_layer_in_float_is_the_model_with_the_weight_put_back(name):
    given, result, floats, parts = made(name)
    before = artifacts.digest(result)
    part = next(part for part in parts if part.kind == WEIGHTS and part.name == "grouped")
    expected = deepcopy(result.model)
    with torch.no_grad():
        if name != "weights":  # BatchNorm is not folded: the float weight is that of before
            expected.grouped.weight.copy_(given.model.grouped.weight)
        else:
            for key, value in floats["grouped"].items():
                expected.grouped.get_parameter(key).copy_(value)
        if name == "dynamic":
            edit = activation_grid(result.edits)
            (number,) = (n for n, s in enumerate(edit["sites"]) if s["layer"] == "grouped")
            expected.get_submodule(CHILD)[number] = torch.nn.Identity()
        with left_out(result, floats, [part]):
            assert torch.equal(result.model(images()), expected(images()))
    assert artifacts.digest(result) == before


def test_an_activation_in_float_is_not_rounded_and_all_parts_together_leave_the_float_weights():
    _, result, floats, parts = made("static")
    for part in (part for part in parts if part.kind == ACTIVATION):
        with torch.no_grad():
            rounded = result.model(images())
            with left_out(result, floats, [part]):
                assert not torch.equal(result.model(images()), rounded)
            assert torch.equal(result.model(images()), rounded)
    expected = deepcopy(result.model)
    with torch.no_grad(), left_out(result, floats, parts), activations_in_float(expected):
        for name, values in floats.items():
            for key, value in values.items():
                expected.get_submodule(name).get_parameter(key).copy_(value)
        assert torch.equal(result.model(images()), expected(images()))


def test_the_time_runs_out_after_the_first_part_and_the_gains_are_sorted():
    _, result, floats, parts = made("static")
    losses = iter([0.9, 0.4, 0.7, *[0.8] * len(parts)])
    told = []
    all_costs = costs(result, floats, parts, lambda model: Quality(0.5, next(losses)), 60,
                      lambda done, total, text: told.append((done, total)), Journal())  # fmt: skip
    assert [cost.part for cost in all_costs[:2]] == [parts[1], parts[2]]
    assert told == [(n, len(parts)) for n in range(len(parts))]
    one = costs(
        result, floats, parts, lambda model: Quality(0.5, 1.0), 0, lambda *_: None, Journal()
    )
    assert [cost.part for cost in one] == parts[:1]


def test_worst_are_those_that_gain_a_tenth_of_the_loss_or_half_of_the_metric():
    first, second, third = (Part(WEIGHTS, name, 8, 0.0) for name in "abc")
    measured = [
        Cost(first, Quality(0.5, 0.60)),
        Cost(second, Quality(0.9, 0.94)),
        Cost(third, Quality(0.4, 0.96)),
    ]
    quantized = Quality(0.5, 1.0)
    assert worst(measured, quantized, Quality(0.9, 0.3)) == [first]
    assert worst(measured, quantized, Quality(0.9, 0.5)) == [first, second]
    assert worst(measured, quantized, Quality(1.0, 1.1)) == [second]
    assert worst(measured, quantized, Quality(0.5, 1.1)) == []


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (None, [{"layers": ["first", "last"], "bits": 8}]),
        ([], []),
        ([{"type": "depthwise", "bits": 8}], [{"type": "depthwise", "bits": 8}]),
    ],
)
def test_settings_keep_what_was_set_and_hydra_reads_them(rules, kept):
    quantize = stage(MinMax(), bits=3, rules=rules, float_activations=["input"])
    parts = [Part(WEIGHTS, "0", 3, 0), Part(WEIGHTS, "a.0", 3, 0), Part(ACTIVATION, ":add:1", 8, 0)]
    settings = overrides("q", quantize, parts)
    read = [OverridesParser.create().parse_override(setting) for setting in settings]
    assert [override.key_or_group for override in read] == [
        "recipe.stages.q.rules", "recipe.stages.q.float_activations"
    ]  # fmt: skip
    assert read[0].value() == [*kept, {"layers": ["0", "a.0"], "bits": None}]
    assert read[1].value() == ["input", ":add:1"]
    assert overrides("q", quantize, parts[:2]) == settings[:1]
    assert overrides("q", quantize, parts[2:]) == settings[1:]


def test_settings_take_back_the_width_of_a_layer():
    given, widths = start(), {"stem": 4, "fc": 6}
    quantize = stage(bits=8, widths=widths)
    settings = overrides("q", quantize, [Part(WEIGHTS, n, 4, 0) for n in ("stem", "grouped")])
    assert settings == [
        "++recipe.stages.q.widths.stem=null", "recipe.stages.q.rules=[{layers:[grouped],bits:null}]"
    ]  # fmt: skip
    composed = compose_config(
        ["recipe=quantize", "+recipe.stages.quantize.widths.stem=4",
         *(setting.replace(".q.", ".quantize.") for setting in settings)],
        [config_folder()],
    )["recipe"]["stages"]["quantize"]  # fmt: skip
    left = stage(bits=8, widths={**widths, **composed["widths"]}, rules=composed["rules"])
    outcome = left.run({"model": given}, context())
    assert weight_bits(outcome.artifact.edits) == {"depthwise": 8, "fc": 6}
    assert torch.equal(outcome.artifact.model.stem.weight, given.model.stem.weight)
    (stem,) = (row for row in outcome.coverage if row.layer == "stem")
    assert stem.touched == 0 and "its width of null keeps it in float" in stem.detail
    command = ["python", "run.py", "+recipe.stages.q.widths.stem=4", "seed=1"]
    assert pasted(command, settings[:1]) == f"python run.py seed=1 {settings[0]}"


def test_a_pasted_command_sets_nothing_twice_and_writes_to_another_folder():
    command = ["python", "run.py", "recipe=quantize", "hydra.run.dir=here",
               "recipe.stages.q.rules=[{layers: a, bits: 8}]", "seed=1"]  # fmt: skip
    setting = 'recipe.stages.q.rules=[{layers:["0"],bits:null}]'
    assert pasted(command, [setting]) == f"python run.py recipe=quantize seed=1 '{setting}'"
    assert pasted(["compressbench", "replay", "recipe.yaml"], [setting]) == ""
