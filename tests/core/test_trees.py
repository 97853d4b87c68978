from __future__ import annotations

from compressbench.core.trees import leaves

TREE = {"a": {"b": [1, {"c": 2}], "e": {}}, "f": None, "g": [], 3: "x"}


def test_mappings_are_entered():
    flat = {"a.b": [1, {"c": 2}], "a.e": {}, "f": None, "g": [], "3": "x"}
    assert leaves(TREE) == flat
    assert list(leaves(TREE)) == list(flat)
    assert leaves(TREE, "top") == {f"top.{name}": value for name, value in flat.items()}


def test_lists_are_entered_where_asked():
    flat = {"a.b.0": 1, "a.b.1.c": 2, "a.e": {}, "f": None, "g": [], "3": "x"}
    assert leaves(TREE, lists=True) == flat
    assert leaves((1, 2), lists=True) == {"0": 1, "1": 2}


def test_a_tree_without_leaves_is_one():
    assert leaves({}) == {"": {}}
    assert leaves(5, "x") == {"x": 5}
