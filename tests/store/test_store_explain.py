"""A miss explained by the nearest entry."""

import os

from compressbench.store.entries import Store
from compressbench.store.explain import explain

BASE = {
    "kind": "stage",
    "stage": "Prune",
    "config": {"sparsity": 0.5, "criterion": {"_target_": "x.L1"}, "rounds": [1, 2]},
    "code": "a" * 64,
    "environment": {"torch": "2.12"},
    "seed": 1,
}


def put(store, parts):
    return store.get_or_build(parts, lambda folder: {})[0]


def with_config(**changes):
    return {**BASE, "config": {**BASE["config"], **changes}}


def test_the_nearest_entry_and_its_differences(tmp_path):
    store = Store(tmp_path)
    put(store, {**with_config(sparsity=0.9), "seed": 2})
    near = put(store, BASE)
    put(store, {**with_config(sparsity=0.6), "stage": "Quantize"})
    wanted = {**with_config(sparsity=0.6), "code": "b" * 64}
    assert explain(store, wanted) == (
        f"differs from {near.key[:12]} in: config.sparsity 0.5 → 0.6; code"
    )


def test_added_removed_and_nested(tmp_path):
    store = Store(tmp_path)
    put(store, BASE)
    wanted = with_config(rounds=[1], extra=None)
    assert explain(store, wanted).endswith(
        "in: config.extra absent → None; config.rounds.1 2 → absent"
    )


def test_true_differs_from_one(tmp_path):
    store = Store(tmp_path)
    put(store, with_config(flag=1))
    assert explain(store, with_config(flag=True)).endswith("config.flag 1 → True")


def test_of_equally_near_ones_the_last_used(tmp_path):
    store = Store(tmp_path)
    old, new = put(store, with_config(sparsity=0.1)), put(store, with_config(sparsity=0.2))
    os.utime(old.folder / "manifest.json", (5, 5))
    assert new.key[:12] in explain(store, BASE)
    os.utime(new.folder / "manifest.json", (4, 4))
    assert old.key[:12] in explain(store, BASE)


def test_stored_and_nothing_alike(tmp_path):
    store = Store(tmp_path)
    assert explain(store, BASE) == "the store has no result of Prune yet"
    entry = put(store, BASE)
    assert explain(store, BASE) == f"stored as {entry.key[:12]}"


def test_many_differences_are_cut_and_credentials_hidden(tmp_path):
    store = Store(tmp_path)
    put(store, with_config(**{f"x{i}": 0 for i in range(20)}))
    assert explain(store, with_config(**{f"x{i}": 1 for i in range(20)})).endswith("; 12 more")
    put(store, with_config(url="https://me:one@host/"))
    said = explain(store, with_config(url="https://me:two@host/"))
    assert said.endswith("credentials only")
