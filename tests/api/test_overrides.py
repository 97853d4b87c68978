"""Overrides of Python values: Hydra must read back what was given."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from compressbench.api.request import _arguments

NUMBERS = st.integers() | st.floats(allow_nan=False)
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec="ascii"), max_size=12)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def read(value):
    (text,) = _arguments({"group.key": value})
    (override,) = OverridesParser.create().parse_overrides([text])
    assert not override.is_sweep_override()
    return override.value()


@given(VALUES)
def test_values_come_back(value):
    assert read(value) == value
    assert type(read(value)) is type(value)


def test_short_texts_of_odd_characters_come_back():
    odd = "\\'\"a ,$:{}[]()=~%0\t\n"
    texts = ["".join(letters) for n in (1, 2) for letters in itertools.product(odd, repeat=n)]
    assert [text for text in texts if read(text) != text] == []
    assert read(texts) == texts


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(np.float64(0.5), 0.5), (np.int64(3), 3), (Path("a b/c"), "a b/c"), ((1, 2), [1, 2]),
     ("true", "true"), ("choice(1,2)", "choice(1,2)"), ("0.5", "0.5"), ("null", "null"),
     ("it's", "it's"), ("a\\'b", "a\\'b"), ({"a": [1], "b": "x y"}, {"a": [1], "b": "x y"})],
)  # fmt: skip
def test_values_of_other_kinds(value, wanted):
    assert read(value) == wanted


def test_plain_words_stay_plain():
    assert _arguments({"recipe": "quantize", "~recipe.stages.finetune": None, "seed": 3}) == [
        "recipe=quantize", "~recipe.stages.finetune", "seed=3",
    ]  # fmt: skip
