"""The store never answers with another's work: every field of a recipe counts in its key."""

from __future__ import annotations

import copy

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from compressbench.core.errors import UserError
from compressbench.core.types import Runtime
from compressbench.data.digits import Digits
from compressbench.engine.plan import make_plan
from tests.contracts.group_files import CONF, of

OF_NOTHING = (1, 0.5)  # in place of null
OF_TEXTS = ("channel", "tensor", "layer", "global", "dynamic")
LEAST_TRIED = 0.6  # share of the fields for which another value is accepted


def plan(config):
    return make_plan(
        config["recipe"]["stages"], model=config["model"], dataset=config["dataset"],
        data=Digits(), runtime=Runtime(), seed=0,
    )  # fmt: skip


def fields(tree, place=()):
    """The places of all values of a config but names of classes."""
    for name, value in tree.items():
        if isinstance(value, dict) and name != "student":
            yield from fields(value, (*place, name))
        elif name not in ("_target_", "_partial_", "teacher", "checkpoint", "student"):
            yield (*place, name)


def changed(config, place, value):
    tree = copy.deepcopy(config)
    node = tree
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    return tree


def value_at(config, place):
    for name in place:
        config = config[name]
    return config


def others(value):
    """Values of the kind of another one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value / 2, value // 2]
    return OF_TEXTS if isinstance(value, str) else OF_NOTHING


def other_plan(config, place):
    """The plan with another value at a place, the first that is accepted; None if none is."""
    old = value_at(config, place)
    for value in others(old):
        try:
            if value != old:
                return plan(changed(config, place, value))
        except UserError:
            continue
    return None


def recipes():
    """All recipes of the group, composed."""
    with initialize_config_dir(str(CONF)):
        for path in of("recipe"):
            yield OmegaConf.to_container(compose("config", overrides=[f"recipe={path.stem}"]))


def test_every_field_of_a_stage_counts_in_its_key_and_in_those_made_from_it():
    """Each field of each class of stages, in the first recipe that has it."""
    seen, tried = set(), set()
    for config in recipes():
        before = None
        for name, stage in config["recipe"]["stages"].items():
            for place in fields(stage):
                field = (stage["_target_"], place)
                if field in seen:
                    continue
                seen.add(field)
                before = before or plan(config)
                after = other_plan(config, ("recipe", "stages", name, *place))
                if after is not None:
                    tried.add(field)
                    assert moved(before, after) == descendants(before, name), field
    assert len(tried) > LEAST_TRIED * len(seen), sorted(seen - tried)


def moved(before, after):
    return {old.name for old, new in zip(before, after, strict=True) if old.key != new.key}


def descendants(plan_, name):
    """A stage, and those that start from what it makes or are taught by it."""
    found = {name}
    for planned in plan_:
        if found & set(planned.parents.values()):
            found.add(planned.name)
    return found
