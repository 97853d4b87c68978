"""Targets: the list is a boundary, options are checked against the signature."""

import re
import sys

import pytest

from compressbench.config.boundary import ALLOW_VARIABLE
from compressbench.config.instantiate import instantiate
from compressbench.config.option_types import mistyped
from compressbench.core.errors import UserError
from compressbench.pruning.prune_iterative import PruneIteratively
from compressbench.training.losses.hinton import Hinton

HINTON = "compressbench.training.losses.hinton.Hinton"


def test_builds():
    assert instantiate({"_target_": HINTON, "alpha": 0.5}) == Hinton(alpha=0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": HINTON, "alfa": 1}, r"loss\.alfa: no such option; did you mean alpha\?"),
        ({"_target_": HINTON, "alpha": 2}, r"loss: alpha must be a number in \[0, 1\], got 2"),
        ({"_target_": "os.system", "command": "true"}, r"_target_=os\.system is not allowed"),
        (
            {"_target_": "compressbench.training.losses.hinton.Hintn"},
            "has no class or function Hintn",
        ),
        ({"_target_": "compressbench.training.losses.nowhere.X"}, "no module"),
        ({"_target_": HINTON, "alpha": {"_target_": "os.getcwd"}}, r"loss\.alpha\._target_=os"),
        ({"_target_": HINTON, "alpha": [{"_target_": "os.getcwd"}]}, r"loss\.alpha\[0\]\._target_"),
        (
            {"_target_": "compressbench.training.losses.hinton.math.floor"},
            "no module|not allowed",
        ),
    ],
)
def test_refuses(config, message):
    with pytest.raises(UserError, match=message):
        instantiate(config, "loss")


def test_a_refused_module_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="not allowed"):
        instantiate({"_target_": "hostile.Net"})
    assert "hostile" not in sys.modules


def test_the_user_may_widen_the_list_by_the_environment(allow, tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text("def half(x):\n    return x / 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"--allow=my_losses\.\*"):
        instantiate({"_target_": "my_losses.half", "x": 4})
    monkeypatch.setenv(ALLOW_VARIABLE, "my_losses.*")
    with pytest.raises(UserError, match="not allowed"):  # the list was read before
        instantiate({"_target_": "my_losses.half", "x": 4})
    allow("my_losses.*")
    assert instantiate({"_target_": "my_losses.half", "x": 4}) == 2


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("warmup", "half", "warmup must be a number, got 'half'"),
        ("rounds", 2.5, "rounds must be an integer, got 2.5"),
        ("skip", ["fc", 1], r"skip must be a list, got \['fc', 1\]"),
    ],
)
def test_an_option_is_typed_where_its_field_is_defined(option, value, message):
    """A stage takes some of its fields from classes of other modules, with names of their own."""
    (problem,) = mistyped(PruneIteratively, {option: value})
    assert re.fullmatch(message, problem)
    assert not list(mistyped(PruneIteratively, {"warmup": 0.5, "rounds": 2, "skip": ["fc"]}))
