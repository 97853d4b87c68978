"""Content keys: equal values have equal keys, any difference gives another."""

import copy
import hashlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressbench.core.errors import UserError
from compressbench.store.keys import canonical, content_key

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
MAPPINGS = st.dictionaries(st.text(max_size=5), TREES, min_size=1, max_size=4)


def reordered(tree):
    """The same values with the keys of every mapping in the opposite order, lists as tuples."""
    if isinstance(tree, dict):
        return {key: reordered(tree[key]) for key in reversed(tree)}
    return tuple(reordered(v) for v in tree) if isinstance(tree, list) else tree


def leaf_paths(tree, path=()):
    if isinstance(tree, (dict, list)) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [p for key, value in items for p in leaf_paths(value, (*path, key))]
    return [path]


@settings(max_examples=50, deadline=None)
@given(MAPPINGS)
def test_key_does_not_depend_on_order_or_on_the_kind_of_sequence(tree):
    assert content_key(tree) == content_key(reordered(tree))


@settings(max_examples=50, deadline=None)
@given(MAPPINGS)
def test_canonical_is_json_of_the_same_value(tree):
    theirs = json.loads(json.dumps(tree), parse_int=float)
    assert json.loads(canonical(tree), parse_int=float) == theirs


@settings(max_examples=50, deadline=None)
@given(st.data(), MAPPINGS)
def test_key_changes_with_any_leaf(data, tree):
    path = data.draw(st.sampled_from(leaf_paths(tree)))
    changed = copy.deepcopy(tree)
    parent = changed
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = {"something": "else"}
    assert content_key(changed) != content_key(tree)


def test_key_is_the_sha256_of_rfc_8785_text():
    parts = {"b": [1, 2.5, True, None], "a": "é\n", "1e30": 1e30}
    text = '{"1e30":1e+30,"a":"é\\n","b":[1,2.5,true,null]}'
    assert content_key(parts) == hashlib.sha256(text.encode()).hexdigest()


def test_true_is_not_one_and_text_is_not_a_number():
    assert len({content_key({"x": x}) for x in (1, True, "1", [1], {"1": 1}, None)}) == 6


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**53, -(2**60), "\ud800"])
def test_a_value_that_json_cannot_hold_is_refused_by_name(value):
    with pytest.raises(UserError, match=r"^config\.stages\.0\.x\b"):
        content_key({"config": {"stages": [{"x": value}]}})


@pytest.mark.parametrize("value", [Path("a"), b"bytes", {1, 2}, object(), 1j])
def test_what_is_no_json_is_an_error(value):
    with pytest.raises(TypeError, match=r"config\.x"):
        content_key({"config": {"x": value}})


def test_names_are_strings():
    with pytest.raises(TypeError, match="1 is not a string"):
        content_key({"config": {1: "x"}})
