"""Classes of labels against a slow union-find."""

from __future__ import annotations

import numpy as np
import pytest

from compressbench.pruning.channels.labels import FREE, Labels


@pytest.mark.parametrize("seed", range(8))
def test_classes_are_those_of_a_slow_union(seed):
    generator = np.random.default_rng(seed)
    labels, count = Labels(), 60
    ids = labels.new(count)
    sets = [{int(label)} for label in ids]
    for _ in range(12):
        one, other = generator.choice(ids, (2, 4, 1)), generator.choice(ids, (1, 3))
        labels.unite(one[0], other)
        for a, b in np.broadcast(one[0], other):
            first = next(s for s in sets if a in s)
            second = next(s for s in sets if b in s)
            if first is not second:
                first |= second
                sets.remove(second)
    found = labels.find(ids)
    for each in sets:
        assert {int(found[label - ids[0]]) for label in each} == {min(each)}


@pytest.mark.parametrize("seed", range(8))
def test_a_fixed_label_fixes_its_class_with_the_first_reason(seed):
    generator = np.random.default_rng(seed)
    labels = Labels()
    ids = labels.new(20)
    labels.unite(ids[:10], ids[0])
    labels.fix(generator.choice(ids[:10], 1), "first")
    labels.unite(ids[10:15], ids[generator.integers(10)])
    labels.fix(ids[:12], "second")
    assert set(labels.reasons(ids[:15])) == {"first"}
    assert set(labels.reasons(ids[15:])) == {""}
    assert (labels.classes(ids[:15]) == -1).all()
    labels.unite(labels.fixed("third"), ids)
    assert set(labels.reasons(ids[:15])) == {"first"}
    assert set(labels.reasons(ids[15:])) == {"third"}


def test_free_labels_impose_nothing():
    labels = Labels()
    ids = labels.new(3)
    labels.unite(ids, np.array([FREE, FREE, ids[0]]))
    assert labels.find(ids).tolist() == [ids[0], ids[1], ids[0]]
    assert labels.reasons([FREE]) == [""]


def test_a_class_is_raw_until_a_layer_joins():
    labels = Labels()
    raw, of_layer = labels.new(4, raw=True), labels.new(2)
    labels.unite(raw[:2], raw[2:])
    assert labels.raw(raw)
    labels.unite(raw[0], of_layer[0])
    assert not labels.raw(raw[2])
    assert labels.raw(raw[1::2])
