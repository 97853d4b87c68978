"""The options of every group, as its YAML files give them."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
import yaml

from compressbench.config.groups import config_folder

CONF = config_folder()
OURS = {"_target_", "_partial_", "defaults", "checkpoint", "student", "teacher", "model"}
OF_THE_RECIPE = {"input_shape": [1, 8, 8], "num_classes": 3}
OF_A_TEXT = {"input_shape": [8], "num_classes": 3, "vocabulary": 50, "pad": 0}


def named(*groups):
    paths = [path for group in groups for path in sorted((CONF / group).glob("*.yaml"))]
    return pytest.mark.parametrize("path", paths, ids=lambda p: f"{p.parent.name}-{p.stem}")


def given_to(path):
    """What the recipe gives to a model, of what its class takes."""
    given = OF_A_TEXT if path.stem.endswith("_transformer") else OF_THE_RECIPE
    parameters = inspect.signature(target(load(path))).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in given.items() if every or name in parameters}


def target(config):
    module, _, name = config["_target_"].rpartition(".")
    return getattr(import_module(module), name)


def load(path):
    """The YAML, on top of another of its group where its defaults name one, with the groups that
    its defaults list names put in; what plan.py takes is out.
    """
    config = yaml.safe_load(path.read_text())
    for entry in config.get("defaults", []):
        if isinstance(entry, dict) and "override" not in str(entry):
            ((group, option),) = entry.items()
            name, _, key = group.partition("@")
            option = str(option).replace("${optimizers@_global_}", "sgd")
            *parents, last = key.split(".")
            place = config
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = load(CONF / name.strip("/") / f"{option}.yaml")
        elif isinstance(entry, str) and entry != "_self_":
            config = {**load(path.with_name(f"{entry}.yaml")), **config}
    return {k: v for k, v in config.items() if k not in OURS - {"_target_"}}
