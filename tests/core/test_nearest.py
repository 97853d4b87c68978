from __future__ import annotations

from compressbench.core.nearest import nearest, nearest_of_many


def test_a_slip_of_the_keyboard_has_one_answer():
    assert nearest("sparsty", {"sparsity", "skip"}) == "; did you mean sparsity?"
    assert nearest("sparsity", []) == ""


def test_of_few_choices_all_are_named_where_none_is_near():
    assert nearest("xyz", ("skip", "layers")) == "; choose from layers, skip"


def test_of_many_choices_one_is_named_however_far():
    layers = ["stem", "blocks.0.conv", "head"]
    assert nearest_of_many("blok.0.conv", layers) == "; the nearest name is blocks.0.conv"
    assert nearest_of_many("xyz", layers).startswith("; the nearest name is ")
    assert nearest_of_many("xyz", []) == ""
