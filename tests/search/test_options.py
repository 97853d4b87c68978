"""The `search` section: objectives, constraints, numbers; one line for what cannot work."""

from __future__ import annotations

import pytest
import yaml

from compressbench.config.groups import config_folder
from compressbench.core.errors import UserError
from compressbench.results.sweep import Constraint, Objective
from compressbench.search.options import read_constraints, read_objectives, read_options


def section(**changes):
    default = yaml.safe_load((config_folder() / "search" / "default.yaml").read_text())
    del default["defaults"]
    return {**default, "sampler": {"_target_": "x"}, **changes}


def test_the_default_is_accepted():
    options = read_options(section())
    assert (options.workers, options.seeds, options.early_stop) == (1, 1, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_trials": 0}, "search.n_trials must be an integer in .1, 1000000., got 0"),
        ({"n_trials": 2.5}, "search.n_trials must be"),
        ({"workers": "two"}, "search.workers must be"),
        ({"seeds": 0}, "search.seeds must be"),
        ({"lease_seconds": -1}, "search.lease_seconds must be"),
        ({"early_stop": "yes"}, "search.early_stop must be true or false"),
        ({"name": "../up"}, "search.name must be"),
        ({"name": ".."}, "search.name must be"),
        ({"name": "a" * 300}, "search.name must be"),
        ({"name": "nul\0"}, "search.name must be"),
        ({"constraints": "val/accuracy >= 0.9"}, "search.constraints must be a list"),
        ({"space": ["x"]}, "search.space must be a section"),
        ({"storage": 5}, "search.storage must be a URL or null"),
        ({"n_trails": 5}, "search.n_trails: no such key; did you mean n_trials?"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace("?", r"\?")):
        read_options(section(**changes))


def test_objectives_of_the_metric():
    assert read_objectives(None, "f1") == (
        Objective("val/f1", "maximize"), Objective("size/download_bytes", "minimize")
    )  # fmt: skip
    assert read_objectives(["maximize latency/speedup"], "f1") == (
        Objective("latency/speedup", "maximize"),
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["maximize val/acuracy"], "no figure val/acuracy; did you mean val/accuracy?"),
        (["maximise val/accuracy"], "must be 'maximize FIGURE' or 'minimize FIGURE'"),
        (["val/accuracy"], "must be 'maximize FIGURE'"),
        (["maximize test/accuracy"], "never reads test data; use val/accuracy"),
        (["maximize val/accuracy", "minimize val/accuracy"], "names val/accuracy twice"),
        ([], "at least one"),
        ("maximize val/accuracy", "at least one"),
    ],
)
def test_refuses_objectives(texts, message):
    with pytest.raises(UserError) as caught:
        read_objectives(texts, "accuracy")
    assert message in str(caught.value)


def test_constraints():
    assert read_constraints(["val/accuracy >= 0.9", "latency/p50_ms<=2"], "accuracy") == (
        Constraint("val/accuracy", True, 0.9), Constraint("latency/p50_ms", False, 2.0)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["val/accuracy >= 0.9", "val/accuracy <= 0.8"], "at least 0.9 and at most 0.8"),
        (["val/accuracy >= 1.2"], "at least 1.2 and at most 1"),
        (["size/onnx_bytes <= -5"], "at least 0 and at most -5"),
        (["val/accuracy > 0.9"], "must be 'FIGURE >= NUMBER'"),
        (["val/accuracy >= high"], "high is not a number"),
        (["val/accuracy >= nan"], "nan is not a number"),
        (["size/bytes <= 5"], "no figure size/bytes"),
        (["test/accuracy >= 0.9"], "never reads test data"),
        ([5], "must be"),
    ],
)
def test_refuses_constraints(texts, message):
    with pytest.raises(UserError) as caught:
        read_constraints(texts, "accuracy")
    assert message in str(caught.value)
