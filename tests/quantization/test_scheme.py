"""Rules and widths: which grid each layer gets, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.grid import Grid
from compressbench.core.types import DataSpec
from compressbench.quantization.grids.scheme import Scheme, grid_text

SPEC = DataSpec("toys", (3, 6, 6), ("a", "b"), (0.0,) * 3, (1.0,) * 3)


class Net(nn.Module):
    """The module order differs from the order of calls: head is defined first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.stem = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(F.relu(self.point(self.depthwise(self.stem(x)))).mean((2, 3)))


def grids(grid, rules=None, widths=None):
    return Scheme(grid, rules, widths).grids(Net().eval(), SPEC)[0]


def bits(found):
    return {name: grid.bits for name, grid in found.items()}


def test_without_rules_every_layer_has_the_one_grid_in_forward_order():
    found, reasons = Scheme(Grid(4)).grids(Net(), SPEC)
    assert list(found) == ["stem", "depthwise", "point", "head"]
    assert set(found.values()) == {Grid(4)}
    assert reasons["unused"] == "not used in the forward pass"


@pytest.mark.parametrize("width", [2, 3])
def test_below_four_bits_the_ends_have_eight_unless_told(width):
    ends = {"stem": 8, "depthwise": width, "point": width, "head": 8}
    assert bits(grids(Grid(width))) == ends
    assert set(bits(grids(Grid(width), [])).values()) == {width}
    grouped = grids(Grid(width, "group", 1))
    assert grouped["stem"] == Grid(8)
    assert grouped["point"] == Grid(width, "group", 1)


def test_later_rules_win_option_by_option_and_widths_win_over_rules():
    rules = [
        {"type": "Conv2d", "bits": 5, "granularity": "tensor"},
        {"type": "depthwise", "bits": 8, "granularity": "channel"},
        {"layers": ["st*", "first"], "bits": 6},
        {"layers": "head", "bits": None},
    ]
    found = grids(Grid(4, "group", 2), rules, {"point": 3})
    assert found == {
        "stem": Grid(6, "tensor"),
        "depthwise": Grid(8, "channel"),
        "point": Grid(3, "tensor"),
    }
    assert grid_text(found["point"]) == "3-bit per tensor"
    assert grid_text(Grid(4, "group", 2, symmetric=False)) == "4-bit per group of 2, asymmetric"


def test_the_example_of_depthwise_and_groups():
    rules = [{"type": "depthwise", "bits": 8, "granularity": "channel"},
             {"layers": "first", "granularity": "channel"}]  # fmt: skip
    found = grids(Grid(4, "group", 4), rules)
    assert found["depthwise"] == Grid(8)
    assert found["head"] == Grid(4, "group", 4)


def test_all_bits_are_those_of_grid_rules_and_widths():
    rules = [{"layers": "a", "bits": 5}, {"layers": "b", "bits": None}]
    assert Scheme(Grid(4), rules, {"c": {"d": 6}}).all_bits() == {4, 5, 6}
    assert Scheme(Grid(3)).all_bits() == {3, 8}


def test_nested_widths_are_names_with_dots():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 6)), nn.Flatten(), nn.Linear(4, 2))
    found, _ = Scheme(Grid(8), widths={"0": {"0": 4}, 2: 6}).grids(model, SPEC)
    assert bits(found) == {"0.0": 4, "2": 6}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"layers": "stm", "bits": 8}], "layers=stm matches no layer to quantize; .* stem"),
        ([{"type": "Conv3d", "bits": 8}], "type=Conv3d matches no layer .*; the model has Conv2d"),
        ([{"layers": "unused", "bits": 8}], "layers=unused matches no layer"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused(rules, message):
    with pytest.raises(UserError, match=rf"rules\[0\]\.{message}"):
        grids(Grid(4), rules)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"layers": "stem", "bits": 33}, r"bits must be an integer in \[2, 8\], got 33"),
        ({"layers": "stem", "bits": 4.5}, "bits must be an integer"),
        ({"layers": "stem"}, "a rule must set bits"),
        ({"bits": 4}, "exactly one of layers and type"),
        ({"layers": "stem", "type": "Conv2d", "bits": 4}, "exactly one of layers and type"),
        ({"layers": "stem", "bit": 4}, "bit: no such option; the nearest name is bits"),
        ({"layers": 3, "bits": 4}, "layers must be a name or a list of names, got 3"),
        ("stem", "a rule must be a mapping"),
        ({"layers": "stem", "granularity": "group"}, "group_size must be an integer of at least 1"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_when_it_is_written(rule, message):
    with pytest.raises(UserError, match=rf"rules\[0\]: .*{message}"):
        Scheme(Grid(8), [rule])


def test_widths_and_groups_that_do_not_fit():
    with pytest.raises(UserError, match=r"widths\.stm: no such layer; the nearest name is stem"):
        grids(Grid(4), widths={"stm": 4})
    with pytest.raises(UserError, match=r"widths\.a\.b must be an integer in \[2, 8\], got 1"):
        Scheme(Grid(4), widths={"a": {"b": 1}})
    with pytest.raises(
        UserError, match=r"group_size=2 does not divide .*stem \(3\), depthwise \(1\); add a rule"
    ):
        grids(Grid(4, "group", 2))


def test_a_layer_of_another_domain():
    spec = DataSpec("series", (2, 9), ("a", "b"), (0.0,), (1.0,))
    model = nn.Sequential(nn.Conv1d(2, 4, 9), nn.Flatten(), nn.Linear(4, 2))
    assert torch.zeros(2, *spec.input_shape).shape == (2, 2, 9)
    assert list(Scheme(Grid(2), []).grids(model, spec)[0]) == ["0", "2"]
