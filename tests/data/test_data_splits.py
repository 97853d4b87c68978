from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressbench.core.digests import digest
from compressbench.core.errors import UserError
from compressbench.data import splits


@settings(deadline=None)
@given(
    targets=st.lists(st.integers(0, 4), min_size=1, max_size=120),
    validation=st.floats(0.05, 0.5),
    test=st.floats(0.05, 0.45),
    seed=st.integers(0, 5),
)
def test_parts_are_disjoint_complete_and_leave_every_class_for_training(
    targets, validation, test, seed
):
    labels = torch.tensor(targets)
    parts = splits.stratified(labels, {"validation": validation, "test": test}, seed)
    rows = torch.cat(list(parts.values()))
    assert sorted(rows.tolist()) == list(range(len(targets)))
    assert set(labels[parts["train"]].tolist()) == set(targets)
    for name, part in parts.items():
        assert part.equal(part.sort().values), name


def test_parts_keep_the_shares_of_the_classes():
    labels = torch.arange(1000) % 4
    parts = splits.stratified(labels, {"validation": 0.1, "test": 0.2}, seed=0)
    assert torch.bincount(labels[parts["validation"]]).tolist() == [25] * 4
    assert torch.bincount(labels[parts["test"]]).tolist() == [50] * 4


def test_the_seed_fixes_the_split():
    labels = torch.arange(100) % 5
    first, again, other = (
        digest([splits.stratified(labels, {"validation": 0.3}, seed)["train"]])
        for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_outside_the_open_interval_are_refused(fraction):
    with pytest.raises(UserError, match=r"validation_fraction must be in \(0, 1\)"):
        splits.stratified(torch.tensor([0, 1]), {"validation": fraction}, 0)


def test_fractions_must_leave_something_for_training():
    with pytest.raises(UserError, match=r"leave images for training, got 0\.5 \+ 0\.5"):
        splits.stratified(torch.tensor([0, 1]), {"validation": 0.5, "test": 0.5}, 0)


def test_rows_of_a_file_are_the_validation_split(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("4\n0\n\n2\n")
    parts = splits.by_rows(path, 6)
    assert parts["validation"].tolist() == [0, 2, 4]
    assert parts["train"].tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n6\n", r"line 2: row must be in \[0, 5\], got 6"),
        ("-1\n", r"line 1: row must be in \[0, 5\], got -1"),
        ("3\n1\n3\n", "line 3: row 3 occurs twice"),
        ("1\nx\n", "line 2: must be a row number, got 'x'"),
        ("", "no row for validation"),
        ("0\n1\n2\n3\n4\n5\n", "lists 6 of 6 rows, which leaves no row for training"),
    ],
)
def test_impossible_rows_are_refused(tmp_path, text, message):
    path = tmp_path / "rows.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        splits.by_rows(path, 6)


def test_a_missing_rows_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"validation_rows=.*absent\.txt: no such file"):
        splits.by_rows(tmp_path / "absent.txt", 6)
