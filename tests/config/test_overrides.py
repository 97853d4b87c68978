"""Words of a command line that are no settings."""

import pytest

from compressbench.config.overrides import refuse
from compressbench.core.errors import UserError


@pytest.mark.parametrize(
    ("word", "meant"),
    [("fronts", "front"), ("Front", "front"), ("font", "front"), ("stores", "store"),
     ("replays", "replay"), ("synch", "sync"), ("help", "--help"), ("version", "--version")],
)  # fmt: skip
def test_the_nearest_command_is_named(word, meant):
    with pytest.raises(UserError) as caught:
        refuse([word, "x"])
    assert str(caught.value) == f"unknown command {word!r}; did you mean {meant!r}?"


@pytest.mark.parametrize("word", ["", "quantize", "8)"])
def test_of_a_word_that_is_near_to_none_all_are_named(word):
    with pytest.raises(UserError, match=r"choose from doctor, explain, .*, --help, .*=VALUE"):
        refuse(["-m", word])


def test_a_word_behind_a_setting_is_named():
    with pytest.raises(UserError, match=r"'8]' is not a setting NAME=VALUE; .* needs quotes"):
        refuse(["a.bits=[4,", "8]"])
    with pytest.raises(UserError, match="'front' must come first: compressbench front"):
        refuse(["~recipe.stages.train", "front"])


@pytest.mark.parametrize(
    "arguments",
    [[], ["-m"], ["--config-dir", "mine", "a=1"], ["-cd", "front", "--cfg", "job"],
     ["a=1", "~recipe.stages.train", "+b=2", "-m"]],
)  # fmt: skip
def test_settings_flags_and_their_values_are_let_through(arguments):
    refuse(arguments)
