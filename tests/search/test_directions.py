"""The least and the most compressed value of every option that a recipe can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from compressbench.config.groups import config_folder
from compressbench.search.directions import direction
from compressbench.search.initial_trials import corners, end
from compressbench.search.space import parse

STAGE = "recipe.stages.s"
# option, its values on a command line, the least and the most compressed of them
ENDS = [
    ("sparsity", "interval(0.3,0.9)", 0.3, 0.9),
    ("sparsity", "choice(0.9,0.5,0.7)", 0.5, 0.9),
    ("threshold", "interval(0.01,0.1)", 0.01, 0.1),
    ("activation_threshold", "0.001,null,0.01", "null", 0.01),
    ("max_layer_sparsity", "interval(0.5,0.9)", 0.5, 0.9),
    ("pattern", "choice('2:4','1:4','3:4')", "3:4", "1:4"),
    ("pattern", "'1:4','2:4'", "'2:4'", "'1:4'"),
    ("pattern", "choice(4x1,1x4)", "4x1", "4x1"),
    ("coupled", "choice(true,false)", False, True),
    ("params", "interval(0.2,0.8)", 0.8, 0.2),
    ("params", "choice(20000,80000)", 80_000, 20_000),
    ("macs", "interval(0.25,0.75)", 0.75, 0.25),
    ("macs", "choice(2x,4x,1.5x)", "1.5x", "4x"),
    ("macs", "choice(4x,0.5,0.1)", 0.5, 0.1),
    ("macs", "4x,null,2x", "null", "4x"),
    ("macs", "choice(2x,100000)", "2x", "2x"),  # which is less depends on the model
    ("onnx_bytes", "int(interval(10000,90000))", 90_000, 10_000),
    ("latency", "choice(0.5,2x,3x)", 0.5, "3x"),
    ("min_channels", "int(interval(4,32))", 32, 4),
    ("bits", "choice(4,2,8)", 8, 2),
    ("bits", "int(interval(2,8))", 8, 2),
    ("activation_bits", "range(4,9)", 8, 4),
    ("group_size", "choice(64,16)", 16, 64),
    ("symmetric", "choice(true,false)", False, True),
    ("allocation.budget", "interval(0.3,0.9)", 0.9, 0.3),
    ("widths.classifier", "choice(4,8)", 8, 4),
    ("widths.blocks.0.bits_free_name", "choice(4,8)", 8, 4),
    ("model.width", "interval(0.25,1.0)", 1.0, 0.25),
    ("model.base_width", "choice(16,64,32)", 64, 16),
    ("model.depth", "choice(8,20)", 20, 8),
    ("model.hidden", "choice([32,16],[64,32])", "[64,32]", "[32,16]"),
    ("model.expansion", "int(interval(1,4))", 4, 1),
    ("model.config.embedding_size", "choice(8,16)", 16, 8),
    ("model.config.hidden_sizes", "choice([8,16],[16,32])", "[16,32]", "[8,16]"),
    ("model.config.depths", "choice([1,1],[2,2])", "[2,2]", "[1,1]"),
    ("model.config.dim", "choice(64,128)", 128, 64),
    ("model.config.hidden_dim", "choice(64,128)", 128, 64),
    ("model.config.n_layers", "int(interval(1,6))", 6, 1),
]
NEITHER = {
    "activation_symmetric", "allocation", "batch_size", "batchnorm", "batchnorm_images",
    "calibration_batch_size", "calibration_images", "checkpoint", "correct_bias",
    "dropout", "epochs", "equalize", "float_activations", "float_where_slower",
    "fold_batchnorm", "group_lasso", "heads", "images", "keep_epoch", "label_smoothing",
    "layers", "loss", "max_growth", "n_heads", "narrow", "normalize", "options",
    "power_of_two", "reduce_range", "rewind", "round_to", "rounds", "rules", "skip",
    "sparsities", "teacher", "tolerance", "until", "updates", "warmup", "widths",
}  # fmt: skip


def one(text):
    ((parameter,), _) = parse([text], [config_folder()])
    return parameter


@pytest.mark.parametrize(("name", "values", "least", "most"), ENDS)
def test_the_ends_of_an_option(name, values, least, most):
    parameter = one(f"+{STAGE}.{name}={values}")
    assert [end(parameter, most=False), end(parameter, most=True)] == [least, most]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ("interval(1,3)", 2),
        ("interval(0.5,1.0)", 0.75),
        ("int(interval(1,4))", 2),
        ("range(1,9,3)", 4),
        ("range(0.1,0.5,0.1)", 0.2),
        ("tag(log,interval(0.001,0.1))", 0.01),
        ("tag(log,int(interval(1,64)))", 8),
        ("choice(5,1,9)", 5),
    ],
)
def test_an_option_that_does_not_compress_is_no_extreme_in_a_corner(values, wanted):
    parameter = one(f"{STAGE}.epochs={values}")
    assert end(parameter, most=False) == end(parameter, most=True) == pytest.approx(wanted)
    assert parameter.holds(end(parameter, most=True))


def options(tree: Mapping[str, Any]) -> Iterator[str]:
    """The names of what is a number, true or false, a list, or null, of which nobody knows."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from options(value)
        elif not isinstance(value, str) and name != "defaults":
            yield name


@pytest.mark.parametrize("group", ["stage", "model"])
def test_every_option_of_the_groups_has_a_known_direction(group):
    directed = {name.rpartition(".")[2] for name, *_ in ENDS}
    for path in sorted((config_folder() / group).glob("*.yaml")):
        for name in options(yaml.safe_load(path.read_text(encoding="utf-8"))):
            assert (name in directed) != (name in NEITHER), f"{path.name}: {name}"
            assert bool(direction(f"{STAGE}.{name}")) == (name in directed), name


def test_corners_of_channel_limits_and_a_width():
    space = parse(
        [f"{STAGE}.macs=choice(2x,4x)", "model.base_width=int(interval(8,32))"], [config_folder()]
    )[0]
    tree = {"model": {"base_width": 16}, "recipe": {"stages": {"s": {"macs": "2x"}}}}
    assert corners(space, lambda chosen: tree) == [
        {f"{STAGE}.macs": "2x", "model.base_width": 32},
        {f"{STAGE}.macs": "4x", "model.base_width": 8},
    ]
