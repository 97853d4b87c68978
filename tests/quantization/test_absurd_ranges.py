"""No grid where constants or infinities make the range; grids that lose much are named."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressbench.core import artifact as artifacts
from compressbench.core import edits
from compressbench.core.activation_quantizers import activations_in_float
from compressbench.core.activation_sites import find_sites, site_name
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import Artifact
from compressbench.export.onnx import export_onnx
from compressbench.quantization.observers.entropy import Entropy
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.observers.moving_average import MovingAverage
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.observers.percentile import Percentile
from tests.export.export_zoo import run
from tests.quantization.masked_zoo import Gated, Masked, Outlier
from tests.quantization.quantized_net import Noise, context, stage, start

FINITE = torch.finfo(torch.float32).min
OBSERVERS = [MinMax(), MovingAverage(), Percentile(99.9), Mse(20), Entropy()]


def images() -> torch.Tensor:
    return Noise().prepare(Noise().split("train").inputs[:17])


def named(sites):
    return [site_name(site) for site in sites]


def given(model: nn.Module) -> Artifact:
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return start(model)


def left_of(result: Artifact) -> list[str]:
    edit = edits.activation_grid(result.edits)
    return [row["site"] for row in edit["calibration"]["left"]]


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("low", [FINITE, -100.0, -math.inf])
def test_a_masked_sum_stays_in_float_and_is_named(observer, low):
    model = given(Masked("sum", low))
    outcome = stage(observer).run({"model": model}, context())
    result = outcome.artifact
    artifacts.check(result, model.model)
    assert left_of(result) == [":add"]
    (warning,) = [text for text in outcome.warnings if "left in float" in text]
    assert ":add" in warning
    assert ":add" not in named(edits.activation_grid(result.edits)["sites"])
    with torch.no_grad():
        error = (result.model(images()) - model.model(images())).abs().max()
        assert error < 0.05 * model.model(images()).abs().max()


@pytest.mark.parametrize(
    ("kind", "low", "site"),
    [
        ("sum", -1e9, ":add"),
        ("sum", -1e4, ":add"),
        ("sum of the mask", FINITE, ":add"),
        ("difference", -1e9, ":sub"),
        ("where", -1e9, ":mul:1"),
        ("where", -1e4, ":mul:1"),
        ("where", -math.inf, ":mul:1"),
        ("fill", -1e9, ":cat"),
        ("fill", -math.inf, ":cat"),
        ("number", 1e6, ":add"),
        ("replaced", -100.0, ":div"),
        ("computed", -1e9, ":add:1"),
        ("attention", FINITE, None),
        ("attention", -math.inf, None),
        ("none", 0.0, None),
    ],
)
def test_constants_are_found_wherever_they_come_in(kind, low, site):
    model = given(Masked(kind, low))
    result = stage(MinMax()).run({"model": model}, context()).artifact
    assert left_of(result) == ([] if site is None else [site])
    artifacts.check(result, model.model)
    with torch.no_grad():
        expected, exact = result.model(images()), model.model(images())
    assert (expected - exact).abs().max() < 0.03 * (exact.max() - exact.min())


@pytest.mark.parametrize(
    ("kind", "low"), [("sum", FINITE), ("where", -1e9), ("fill", -math.inf), ("attention", -1e4)]
)
def test_the_file_computes_what_a_masked_model_does(kind, low, tmp_path):
    model = given(Masked(kind, low))
    result = stage(MinMax()).run({"model": model}, context()).artifact
    export_onnx(result, Noise(), tmp_path / "model.onnx")
    with torch.no_grad():
        expected = result.model(images())
    for optimize in (True, False):
        got = torch.from_numpy(run(tmp_path / "model.onnx", images(), optimize))
        assert (got - expected).abs().max() < 0.01 * (expected.max() - expected.min())


@pytest.mark.parametrize("bits", [4, 8])
def test_ordinary_ranges_keep_their_grids(bits):
    torch.manual_seed(0)
    result = stage(MinMax(), activation_bits=bits).run({"model": start(Gated())}, context())
    assert left_of(result.artifact) == []
    assert not [text for text in result.warnings if "left in float" in text]


def test_infinities_that_reach_the_output_are_no_mask():
    model = given(Masked("none"))
    model.model.fc.weight.data[1, 2] = 3e38
    with pytest.raises(CheckFailedError, match="is not finite"):
        model.model.qkv.bias.data[30] = math.inf
        stage(MinMax()).run({"model": model}, context())


def reference_loss(values: torch.Tensor, scale: float, zero_point: int) -> float:
    """mean_c min(1, E[(Q(x) - x)²] / Var[x]) with a loop over the channels."""
    shares = []
    for channel in values.movedim(1, 0).double():
        codes = (channel / scale).round().add(zero_point).clamp(0, 255)
        error = ((codes - zero_point) * scale - channel).square().mean()
        variance = channel.var(correction=0)
        if variance > 0:
            shares.append(min(1.0, float(error / variance)))
    return sum(shares) / len(shares)


def test_the_grid_that_an_outlier_spoils_is_named_with_what_it_loses():
    torch.manual_seed(0)
    model = start(Outlier(1000.0))
    outcome = stage(MinMax()).run({"model": model}, context())
    rows = list(outcome.tables["activations"])
    assert [row["lost"] for row in rows] == sorted((row["lost"] for row in rows), reverse=True)
    assert {row["site"] for row in rows} == {"input", "act:relu", ":mean"}
    row = next(row for row in rows if row["site"] == "act:relu")
    result = outcome.artifact.model
    with torch.no_grad(), activations_in_float(result):
        data = Noise().prepare(Noise().split("train").inputs)
        values = torch.relu(result.stem(data))
    quantizers = result.activation_quantizers
    number = named(find_sites(model.model, images())).index("act:relu")
    grid = quantizers[number]
    expected = reference_loss(values, float(grid.scale), int(grid.zero_point))
    assert row["lost"] == pytest.approx(expected, rel=0.2), "on a part of the images"
    assert row["high"] == pytest.approx(float(grid.scale) * 255)
    (warning,) = outcome.warnings
    assert ":mean" in warning and "act:relu" in warning
    plain = stage(MinMax()).run({"model": start(Outlier(1.0))}, context())
    assert next(r for r in plain.tables["activations"] if r["site"] == "act:relu")["lost"] < 0.01
    assert plain.warnings == ()


class Turned(nn.Module):
    """Activations with the batch as their only, their second or their last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        brightness = x.mean((1, 2, 3)) * 2.0
        x = torch.relu(x.mean(3).permute(1, 0, 2)) + brightness[:, None]
        x = torch.relu(x.permute(2, 0, 1))
        return self.fc(x.permute(2, 1, 0)).mean(1)


@pytest.mark.parametrize("count", [41, 48])
def test_losses_of_activations_with_the_batch_on_any_axis(count):
    torch.manual_seed(0)
    made = stage(MinMax(), calibration_images=count)
    rows = made.run({"model": start(Turned())}, context()).tables["activations"]
    assert {":mul", ":add", ":relu:1"} <= {row["site"] for row in rows}
    assert all(0 <= row["lost"] < 0.05 for row in rows)


def test_named_activations_stay_in_float_and_the_layers_behind_them_get_what_the_model_has():
    torch.manual_seed(0)
    model = start(Outlier(1000.0))
    made = stage(MinMax(), float_activations=["act", ":mean"])
    made.check_model(model.model, Noise().spec)
    result = made.run({"model": model}, context())
    edit = edits.activation_grid(result.artifact.edits)
    assert named(edit["sites"]) == ["input"]
    assert left_of(result.artifact) == []
    assert result.warnings == ()
    spoiled = stage(MinMax()).run({"model": model}, context()).artifact.model
    with torch.no_grad():
        exact = model.model(images())
        errors = [(m(images()) - exact).abs().max() for m in (result.artifact.model, spoiled)]
    assert errors[0] < 0.2 * errors[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"float_activations": "act"}, "float_activations must be a list of names, got 'act'"),
        ({"float_activations": ["akt"]}, r"float_activations: no activation 'akt'"),
        ({"float_activations": [""]}, r"float_activations must be a list of names, got \[''\]"),
    ],
)
def test_names_without_an_activation_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        stage(MinMax(), **options).check_model(Outlier(1.0).eval(), Noise().spec)
    with pytest.raises(UserError, match="float_activations needs activations with calibrated"):
        replace(stage(), float_activations=["act"])
