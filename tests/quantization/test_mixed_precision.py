"""Mixed widths: the optimum against all assignments, the budget against the real file."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressbench.analysis.sensitivity.loss_increase import LossIncrease
from compressbench.config.instantiate import instantiate
from compressbench.core.artifact import check
from compressbench.core.edits import weight_bits
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.grid import Grid
from compressbench.core.types import TRAINED, Artifact, Context, Runtime
from compressbench.data.digits import Digits
from compressbench.export.onnx import export_onnx
from compressbench.models.mlp import Mlp
from compressbench.quantization.mixed_precision import (
    Allocation,
    cheapest,
    layer_bytes,
    stored_bits,
)
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.nearest import Nearest


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def best_of_all(costs, sizes, spend):
    """The least cost over all assignments that fit; None where none does."""
    layers, choices = costs.shape
    fitting = [
        sum(costs[row, column] for row, column in enumerate(picked))
        for picked in itertools.product(range(choices), repeat=layers)
        if sum(sizes[row, column] for row, column in enumerate(picked)) <= spend
    ]
    return min(fitting, default=None)


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 6),
    choices=st.integers(2, 3),
    seed=st.integers(0, 10**6),
    decades=st.floats(0, 5),
    share=st.floats(-0.1, 1.1),
    exact=st.booleans(),
)
def test_the_cheapest_of_all_assignments(layers, choices, seed, decades, share, exact):
    generator = np.random.default_rng(seed)
    costs = 10 ** generator.uniform(-decades, 0, (layers, choices)) * 1e-3
    sizes = generator.integers(1, 40_000, (layers, choices))
    if exact:  # the budget is met to the byte by some assignment
        spend = int(sum(generator.choice(row) for row in sizes))
    else:
        low, high = sizes.min(axis=1).sum(), sizes.max(axis=1).sum()
        spend = int(low + share * (high - low))
    picked, expected = cheapest(costs, sizes, spend), best_of_all(costs, sizes, spend)
    if expected is None:
        assert picked is None
        return
    rows = np.arange(layers)
    assert sizes[rows, picked].sum() <= spend
    assert costs[rows, picked].sum() == pytest.approx(expected, rel=1e-6)


def test_costs_of_zero_are_no_obstacle():
    assert cheapest(np.zeros((3, 2)), np.array([[1, 9]] * 3), 3) == [0, 0, 0]


@pytest.mark.parametrize(("bits", "stored"), [(2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_bytes_of_a_layer(bits, stored):
    weight = torch.zeros(3, 4, 5, 1)
    assert stored_bits(bits) == stored
    assert layer_bytes(weight, Grid(bits)) == -(-60 * stored // 8) + 3 * 4
    grouped = Grid(bits, "group", 2, symmetric=False)
    assert layer_bytes(weight, grouped) == -(-60 * stored // 8) + 6 * 4 + -(-6 * stored // 8)


class Net(nn.Module):
    """Four linear layers, of which two share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 10)
        )  # fmt: skip
        self.c.weight = self.b.weight

    def forward(self, x):
        x = self.a(x.flatten(1)).relu()
        return self.d(self.c(self.b(x).relu()).relu())


def start() -> Artifact:
    torch.manual_seed(0)
    return Artifact(Net().eval(), {"_target_": "Net"}, (), frozenset({TRAINED}))


OVERHEAD, QUIRK = 1000, 37


def pretended_bytes(artifact: Artifact, narrowest: int = 2) -> int:
    """A file format in which each layer of 4 bits takes some bytes that nobody told us of."""
    bits, model = weight_bits(artifact.edits), artifact.model
    stored = {id(model.get_submodule(n).weight): n for n in bits}.values()
    weights = {n: model.get_submodule(n).weight for n in stored}
    sizes = (layer_bytes(weight, Grid(bits[n]), narrowest) for n, weight in weights.items())
    return OVERHEAD + sum(sizes) + QUIRK * sum(bits[n] == 4 for n in stored)


@dataclass(frozen=True)
class Falling:
    """Costs that fall by the square of the step, by layer."""

    weights: tuple[float, ...] = (3.0, 1.0, 9.0)

    def __call__(self, model, candidates, context):
        return {
            layer: {bits: factor * 4.0**-bits for bits in by_bits}
            for factor, (layer, by_bits) in zip(self.weights, candidates.items(), strict=True)
        }


def quantized(budget, widths=(2, 4, 8), sensitivity=Falling(), method=None, weigh=pretended_bytes,
              **options):  # fmt: skip
    stage = Quantize(
        Nearest(MinMax()) if method is None else method,
        allocation=Allocation(sensitivity, budget, widths),
        **options,
    )
    context = Context(Digits(), Runtime(), 0, Path(), instantiate, export_bytes=weigh)
    return stage.run({"model": start()}, context)


def test_the_file_fits_and_no_better_widths_would():
    uniform = {b: OVERHEAD + sum(sizes_of(b)) + QUIRK * 3 * (b == 4) for b in (2, 4, 8)}
    budget = (uniform[4] + uniform[8]) // 2
    result = quantized(budget)
    check(result.artifact)
    assert pretended_bytes(result.artifact) <= budget
    rows = {row["layer"]: row for row in result.tables["allocation"]}
    costs = np.array([[f * 4.0**-b for b in (2, 4, 8)] for f in (3.0, 1.0, 9.0)])
    sizes = np.array([[size + QUIRK * (b == 4) for size in sizes_of(b)] for b in (2, 4, 8)]).T
    chosen = sum(rows[n][f"sensitivity_{rows[n]['bits']}"] for n in "abd")
    assert chosen == pytest.approx(best_of_all(costs, sizes, budget - OVERHEAD), rel=1e-6)
    assert weight_bits(result.artifact.edits) == {n: row["bits"] for n, row in rows.items()}
    assert {row["detail"] for row in map(vars, result.coverage)} <= {
        f"{b}-bit per channel" for b in (2, 4, 8)
    }


@pytest.mark.parametrize("budget", [3650, 4050, 4450, 5775])
def test_an_excess_smaller_than_what_was_left_over_is_made_up_for(budget):
    assert pretended_bytes(quantized(budget).artifact) <= budget


def test_bits_that_the_runtime_cannot_store_save_nothing():
    """Where 2 bits are stored as 4, the best widths that fit have no layer of 2 bits."""

    def weigh(artifact):
        return pretended_bytes(artifact, narrowest=4)

    result = quantized(0.8, weigh=weigh)
    assert set(weight_bits(result.artifact.edits).values()) == {4, 8}
    with pytest.raises(UserError, match="bytes, with 2 bits in every layer"):
        quantized(0.5, weigh=weigh)


def sizes_of(bits: int) -> list[int]:
    model = start().model
    return [layer_bytes(model.get_submodule(n).weight, Grid(bits)) for n in "abd"]


def test_layers_that_share_a_weight_share_the_width():
    rows = {r["layer"]: r for r in quantized(0.6).tables["allocation"]}
    assert rows["b"]["bits"] == rows["c"]["bits"]


def test_rules_and_widths_stay():
    rules = [{"layers": "d", "bits": 6}, {"layers": "a", "narrow": False}]
    result = quantized(0.7, rules=rules, sensitivity=Falling((3.0, 1.0)))
    rows = {row["layer"]: row for row in result.tables["allocation"]}
    assert (rows["d"]["bits"], rows["d"]["sensitivity_4"]) == (6, None)
    assert [n for n, row in rows.items() if row["chosen"]] == ["a", "b", "c"]
    (edit,) = result.artifact.edits
    assert edit["layers"]["a"]["narrow"] is False
    with pytest.raises(UserError, match="rules and widths set all bits"):
        quantized(0.7, rules=[{"layers": "*", "bits": 4}])


def test_the_table_gives_the_same_widths_by_hand():
    result = quantized(0.6)
    widths = {}
    for row in result.tables["allocation"]:
        path, _, bits = row["option"].partition("=")
        widths[path.removeprefix("widths.")] = int(bits)
    stage = Quantize(Nearest(MinMax()), widths=widths)
    context = Context(Digits(), Runtime(), 0, Path(), instantiate)
    same = stage.run({"model": start()}, context).artifact
    assert same.edits == result.artifact.edits


def test_a_budget_below_the_least_is_refused_before_anything_is_measured():
    def never(model, candidates, context):
        raise AssertionError("no sensitivity is needed to see this")

    least = OVERHEAD + sum(sizes_of(2))
    with pytest.raises(
        UserError, match=f"budget=500 bytes is too low: the ONNX file has at least {least:,} bytes"
    ):
        quantized(500, sensitivity=never)
    assert weight_bits(quantized(least).artifact.edits) == dict.fromkeys("abcd", 2)
    with pytest.raises(UserError, match=f"at least {least:,} bytes"):
        quantized(least - 1, sensitivity=never)


def test_a_slow_method_runs_only_on_widths_whose_file_fits():
    seen = []

    @dataclass(frozen=True)
    class Slow:
        def __call__(self, model, grids, context):
            seen.append({name: grid.bits for name, grid in grids.items()})
            return Nearest(MinMax())(model, grids, context)

    result = quantized(0.55, method=Slow())
    assert seen == [{n: weight_bits(result.artifact.edits)[n] for n in "abd"}]


def test_a_file_that_never_fits_is_a_failed_check():
    weighed = []

    def weigh(artifact):  # right for the most and the least bits, which come first
        weighed.append(artifact)
        return 5001 if len(weighed) > 2 else pretended_bytes(artifact)

    with pytest.raises(CheckFailedError, match="still 1 bytes over its budget of 5,000"):
        quantized(5000, weigh=weigh)


@pytest.mark.parametrize("cost", [float("nan"), -1.0, float("inf")])
def test_a_sensitivity_that_is_no_cost_is_a_failed_check(cost):
    with pytest.raises(CheckFailedError, match="sensitivity of a must be finite and not negative"):
        quantized(0.5, sensitivity=Falling((cost, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, r"budget in bytes must be an integer in .*, got 0"),
        ({"budget": 1.0}, "got 1.0"),
        ({"budget": -5}, "got -5"),
        ({"budget": "120kB"}, "got '120kB'"),
        ({"budget": True}, "got True"),
        ({"widths": [4]}, r"widths must be a list of two or more, got \[4\]"),
        ({"widths": [4, 9]}, r"widths must be an integer in \[2, 8\], got 9"),
        ({"widths": 4}, "got 4"),
        ({"sensitivity": 3}, "sensitivity must be a sensitivity, got 3"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Allocation(**({"sensitivity": Falling()} | options))


def test_the_budget_holds_on_the_file_that_onnx_runtime_loads(tmp_path):
    """The promise: bytes on disk, of a net with fixed costs that dwarf its weights."""
    torch.manual_seed(0)
    model = Mlp([1, 8, 8], 10, [48, 32]).eval()
    given = Artifact(model, {"_target_": "Mlp"}, (), frozenset({TRAINED}))

    sizes, reports = [], []

    def weigh(artifact: Artifact) -> int:
        reports.append(export_onnx(artifact, Digits(), tmp_path / "model.onnx"))
        sizes.append((tmp_path / "model.onnx").stat().st_size)
        return sizes[-1]

    context = Context(Digits(), Runtime(), 0, tmp_path, instantiate, export_bytes=weigh)
    stage = Quantize(Nearest(Mse()), allocation=Allocation(LossIncrease(64, 32), 0.8))
    rows = stage.run({"model": given}, context).tables["allocation"]
    assert len({row["bits"] for row in rows}) > 1
    assert 0.65 * sizes[0] < sizes[-1] <= 0.8 * sizes[0]
    exported = {layer["layer"]: layer["bits"] for layer in reports[-1]["layers"]}
    assert exported == {row["layer"]: row["bits"] for row in rows}
