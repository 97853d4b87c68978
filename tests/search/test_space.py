"""A search space: what is read, what is refused, what is drawn under which options."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from compressbench.config.groups import config_folder
from compressbench.core.errors import UserError
from compressbench.search.initial_trials import corners, end, grid, known
from compressbench.search.space import draw, every, exists, joined, overrides, parse

CONF = [config_folder()]
PRUNE, BITS = "recipe.stages.prune.sparsity", "recipe.stages.quantize.bits"


def one(text):
    ((parameter,), fixed) = parse([text], CONF)
    assert fixed == []
    return parameter


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a=interval(0.3,0.95)", FloatDistribution(0.3, 0.95)),
        ("a=interval(0,10)", FloatDistribution(0, 10)),
        ("a=int(interval(2,8))", IntDistribution(2, 8)),
        ("a=tag(log,interval(0.001,1))", FloatDistribution(0.001, 1, log=True)),
        ("a=tag(log, int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("a=choice(2,3,4,8)", CategoricalDistribution([2, 3, 4, 8])),
        ("a=2,3", CategoricalDistribution([2, 3])),
        ("a=choice(true,false)", CategoricalDistribution([True, False])),
        ("a=choice(tensor,channel)", CategoricalDistribution(["tensor", "channel"])),
        ("a=choice([1,2],[3])", CategoricalDistribution(["[1,2]", "[3]"])),
        ("a=range(1,5)", IntDistribution(1, 4)),
        ("a=range(1,10,3)", IntDistribution(1, 7, step=3)),
        ("a=range(10,1,-3)", IntDistribution(4, 10, step=3)),
        ("a=range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
    ],
)
def test_reads_what_hydra_writes(text, wanted):
    assert one(text).distribution() == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=interval(5,5)", "empty interval"),
        ("a=interval(5,2)", "empty interval|start"),
        ("a=interval(0,inf)", "empty interval"),
        ("a=tag(log,interval(0,1))", "must start above 0"),
        ("a=choice(2,2)", "same choice twice"),
        ("a=choice()", "choice"),
        ("a=range(3,3)", "no value"),
        ("recipe=interval(0,1)", "needs choice"),
    ],
)
def test_refuses_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        one(text)
    assert "\n" not in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(low=st.floats(-100, 100), width=st.floats(0.01, 100), share=st.floats(0, 1))
def test_a_value_survives_its_override(low, width, share):
    parameter = one(f"a=interval({low!r},{low + width!r})")
    value = parameter.rounded(low + share * width)
    assert float(parameter.override(value).partition("=")[2]) == value


def test_choices_keep_their_text():
    parameter = one("a=choice('x y','[1]',3.5,quoted,'it\\'s','true')")
    searched, fixed = parse([parameter.override(c) for c in parameter.choices], CONF)
    assert not searched
    read = [OverridesParser.create().parse_override(f).value() for f in fixed]
    assert [getattr(v, "text", v) for v in read] == ["x y", "[1]", 3.5, "quoted", "it's", "true"]


def test_the_command_line_goes_over_the_yaml():
    named = {PRUNE: "interval(0.1,0.5)", BITS: "choice(2,8)", "recipe": "choice(a,b)"}
    space, fixed = joined(named, [f"{PRUNE}=interval(0.6,0.9)", "recipe=quantize"], CONF)
    assert {p.key: p.text for p in space} == {BITS: "choice(2,8)", PRUNE: "interval(0.6,0.9)"}
    assert fixed == ["recipe=quantize"]
    with pytest.raises(UserError, match="is one value"):
        joined({PRUNE: "0.5"}, [], CONF)


TREES = {
    "recipe=quantize": {"recipe": {"stages": {"quantize": {"bits": 8, "weight": {}}}}},
    "recipe=both": {"recipe": {"stages": {"prune": {"sparsity": 0.5}, "quantize": {
        "bits": 8, "weight": {}}}}},
}  # fmt: skip
ADAROUND = "quantizer@recipe.stages.quantize.weight"


def configs(options):
    """As composed: `iterations` is there only under adaround."""
    base = TREES.get(options[0] if options else "", {})
    if f"{ADAROUND}=adaround" in options:
        stages = base["recipe"]["stages"]
        extra = {**stages["quantize"], "weight": {"iterations": 9}}
        return {"recipe": {"stages": {**stages, "quantize": extra}}}
    return base


def conditional():
    texts = ["recipe=choice(quantize,both)", f"{PRUNE}=range(0.2,0.8,0.2)", f"{BITS}=2,8",
             f"{ADAROUND}=nearest,adaround",
             "recipe.stages.quantize.weight.iterations=1,2"]  # fmt: skip
    return parse(texts, CONF)[0]


@pytest.mark.parametrize(
    ("recipe", "weight", "wanted"),
    [
        ("quantize", "nearest", {"bits"}),
        ("both", "nearest", {"bits", "sparsity"}),
        ("both", "adaround", {"bits", "sparsity", "iterations"}),
    ],
)
def test_only_what_the_chosen_options_have_is_drawn(recipe, weight, wanted):
    chosen = {"recipe": recipe, ADAROUND: weight}
    found = draw(conditional(), configs, lambda p: chosen.get(p.key, (p.choices or [p.low])[0]))
    assert {k.rpartition(".")[2] for k in found} - {"recipe", "weight"} == wanted
    words = overrides(conditional(), found)
    assert words[0] == f"recipe={recipe}"
    assert len(words) == len(found)


@pytest.mark.parametrize(
    ("key", "wanted"),
    [("a.b", True), ("a.c", False), ("+a.c", True), ("+b.c", False), ("a.b.c", False),
     ("a.l.1.x", True), ("a.l.2.x", False), ("a.l.one.x", False), ("q@a", True), ("q@a.n.x", True),
     ("q@b.x", False)],
)  # fmt: skip
def test_the_place_of_a_parameter(key, wanted):
    config = {"a": {"b": 1, "n": {}, "l": [{"x": 1}, {"x": 2}]}}
    assert exists(one(f"{key}=1,2"), config) == wanted


def test_a_grid_has_every_combination_once():
    found = list(every(conditional(), configs))
    assert len(found) == 2 * (1 + 2) * (1 + 3)  # bits x (nearest, adaround with 2) x (no, 3)
    assert len({tuple(sorted(map(str, f.items()))) for f in found}) == len(found)
    assert grid(conditional(), configs, 0) != grid(conditional(), configs, 1)
    assert sorted(map(str, grid(conditional(), configs, 7))) == sorted(map(str, found))
    with pytest.raises(UserError, match="a grid needs choices"):
        grid(parse([f"{PRUNE}=interval(0.1,0.2)"], CONF)[0], lambda o: TREES["recipe=both"], 0)


def test_corners_are_the_least_and_the_most_compressed():
    space = parse([f"{PRUNE}=interval(0.3,0.9)", f"{BITS}=4,2,8", "recipe=both,quantize"], CONF)[0]
    assert corners(space, configs) == [
        {"recipe": "both", PRUNE: 0.3, BITS: 8},
        {"recipe": "quantize", BITS: 8},
        {"recipe": "both", PRUNE: 0.9, BITS: 2},
        {"recipe": "quantize", BITS: 2},
    ]
    assert end(one("x.scope=choice(layer,global)"), most=True) == "layer"


@pytest.mark.parametrize(
    ("enqueue", "message"),
    [
        ([{"x": 1}], r"enqueue\[0\]\.x is not in the space"),
        ([{BITS: 8}, {BITS: 5}], r"enqueue\[1\].*5 is not in choice\(2,8\)"),
        ([{PRUNE: 0.95}], r"0.95 is not in interval"),
        ([3], "must be settings"),
    ],
)
def test_known_settings_are_checked(enqueue, message):
    space = parse([f"{PRUNE}=interval(0.3,0.9)", f"{BITS}=choice(2,8)"], CONF)[0]
    assert known([{BITS: 8, PRUNE: 0.9}], space)
    with pytest.raises(UserError, match=message):
        known(enqueue, space)
