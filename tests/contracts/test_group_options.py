"""Options of every group: the YAML says what the class says, and no other is taken."""

from __future__ import annotations

import inspect

import pytest

from compressbench.config.instantiate import check
from compressbench.core.errors import UserError
from tests.contracts.group_options import given_to, load, named, target


@named(
    "criterion",
    "quantizer",
    "trained_quantizer",
    "sensitivity",
    "loss",
    "dataset",
    "model",
    "tracking",
)
def test_a_default_in_the_class_is_the_one_in_the_yaml(path):
    """Who builds the class in Python gets what the command line gets."""
    config = load(path)
    if path.stem == "resnet56":
        config["depth"] = 20
    for name, parameter in inspect.signature(target(config)).parameters.items():
        if parameter.default is not parameter.empty:
            default = parameter.default
            same = list(default) if isinstance(default, tuple) else default
            assert config[name] == same, name


@named(
    "criterion",
    "quantizer",
    "trained_quantizer",
    "sensitivity",
    "loss",
    "stage",
    "tracking",
    "dataset",
    "model",
)
def test_an_unknown_option_is_refused(path):
    config = {**load(path), **(given_to(path) if path.parent.name == "model" else {}), "sparsty": 1}
    with pytest.raises(UserError, match=r"here\.sparsty: no such option"):
        check(config, "here")
