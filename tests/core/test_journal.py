"""A journal gives back what was finished, of the same work only, and never what was damaged."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path

import pytest
import torch

from compressbench.core import journal as journals
from compressbench.core.journal import FILE, Journal
from compressbench.core.records import Records
from tests.faults.disks import small_disk
from tests.two_ranks import on_two_ranks

VALUES = {
    "numbers": [1, -0.1, 1e-320, math.inf, True, None, "text\n"],
    "tensors": {"a": torch.arange(6).reshape(2, 3), 7: [torch.tensor(0.1), torch.zeros(0)]},
    "types": [torch.tensor([1, 2], dtype=d) for d in (torch.int16, torch.uint8, torch.float64)],
}


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def refused() -> object:
    raise AssertionError("computed again")


def test_values_come_back_as_they_were(tmp_path):
    first = Journal.open(tmp_path)
    for name, value in VALUES.items():
        assert first.once(name, lambda value=value: value) is value
    again = Journal.open(tmp_path)
    assert all(same(value, again.once(name, refused)) for name, value in VALUES.items())
    assert math.isnan(Journal.open(tmp_path).once("nan", lambda: math.nan))
    assert math.isnan(Journal.open(tmp_path).once("nan", refused))


def test_a_unit_belongs_to_what_it_depends_on(tmp_path):
    weight = torch.ones(3)
    journal = Journal.open(tmp_path)
    assert journal.within("rounding", weight).once("fc", lambda: 1) == 1
    again = Journal.open(tmp_path)
    assert again.within("rounding", weight.clone()).once("fc", refused) == 1
    for other in (again, again.within("rounding", weight * 2), again.within("other", weight)):
        assert other.once("fc", lambda: 2) == 2


def test_a_generator_goes_on_where_the_unit_left_it(tmp_path):
    def drawn(journal: Journal) -> list[float]:
        generator = torch.Generator().manual_seed(4)
        first = journal.once("1", lambda: torch.rand(3, generator=generator), generator)
        return [*first.tolist(), *torch.rand(2, generator=generator).tolist()]

    assert drawn(Journal.open(tmp_path)) == drawn(Journal.open(tmp_path)) == drawn(Journal())


def test_every_single_flipped_bit_is_noticed(tmp_path):
    journal = Journal.open(tmp_path)
    for number in range(3):
        journal.once(str(number), lambda number=number: [number, torch.full((2,), float(number))])
    path = tmp_path / f"{FILE}-0"
    content, draws = path.read_bytes(), random.Random(1)
    for _ in range(400):
        damaged = bytearray(content)
        damaged[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        again = Journal.open(tmp_path)
        values = [again.once(str(n), lambda: None) for n in range(3)]
        assert None in values
        for number, value in enumerate(values):
            assert value is None or same(value, [number, torch.full((2,), float(number))])


@pytest.mark.parametrize("cut", range(0, 400, 13))
def test_a_torn_end_is_cut_off_and_written_again(tmp_path, cut):
    path = tmp_path / "records"
    records = Records(path)
    for number in range(3):
        records.append(str(number), torch.full((2,), float(number)))
    path.write_bytes(path.read_bytes()[: -1 - cut])
    torn = Records(path)
    assert set(torn.places) < {"0", "1", "2"}
    torn.append("last", 4)
    whole = Records(path)
    assert set(whole.places) == {*torn.places}
    assert whole.read("last") == 4


def sums(journal: Journal, stop: int = 99) -> tuple[list[int], dict]:
    done, state = [], {"total": torch.zeros(())}
    for item in journal.over("pass", range(5), state):
        if item == stop:
            break
        done.append(item)
        state["total"] += item
        state["new"] = torch.tensor(item)
    return done, state


def test_a_pass_goes_on_from_its_last_state(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(journals, "BYTES_PER_SECOND", math.inf)
    assert sums(Journal.open(tmp_path), stop=3)[0] == [0, 1, 2]
    done, state = sums(Journal.open(tmp_path))
    assert done == [3, 4]
    assert state == {"total": torch.tensor(10.0), "new": torch.tensor(4)}
    assert sums(Journal.open(tmp_path)) == ([], state)
    path = next(tmp_path.glob("pass-*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert sums(Journal.open(tmp_path)) == ([0, 1, 2, 3, 4], state)


def test_rows_are_kept_in_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "SAVE_SECONDS", 0.0)

    def rows(compute) -> list[float]:
        return [float(x) for x in Journal.open(tmp_path).rows("logits", range(4), compute)]

    def dies_at_two(item: int) -> torch.Tensor:
        if item == 2:
            raise KeyboardInterrupt
        return torch.tensor(item * 1.5)

    with pytest.raises(KeyboardInterrupt):
        rows(dies_at_two)
    assert rows(lambda item: torch.tensor(item * 1.5) if item > 1 else refused()) == [
        0,
        1.5,
        3,
        4.5,
    ]
    assert rows(lambda item: refused()) == [0, 1.5, 3, 4.5]


def test_a_full_disk_costs_what_is_kept_and_nothing_else(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "64k") as disk, caplog.at_level(logging.WARNING):
        journal = Journal.open(disk)
        for number in range(9):
            values = journal.once(str(number), lambda number=number: torch.full((5000,), number))
            assert values[-1] == number
        assert len(caplog.records) == 1
        assert "No space left" in caplog.text or "the disk is full" in caplog.text
        assert Journal.open(disk).once("0", refused)[0] == 0


def test_progress_says_what_was_measured_before(tmp_path):
    journal = Journal.open(tmp_path).within("layers")
    assert journal.before(3) == ""
    for name in ("a", "b"):
        journal.once(name, lambda: 1)
    assert journal.before(3) == ""
    again = Journal.open(tmp_path).within("layers")
    assert again.before(3) == ", of which 2 of 3 were measured before"


def shared(rank: int, folder: str) -> list[str]:
    """What this rank computes: the last unit is one that rank 1 has not finished before."""
    computed: list[str] = []
    journal = Journal.open(Path(folder))
    for name in ("both", "first"):
        journal.once(name, lambda name=name: computed.append(name))
    return computed


@pytest.mark.long
def test_a_unit_that_one_rank_has_not_finished_is_computed_on_all(tmp_path):
    for rank, names in enumerate((("both", "first"), ("both",))):
        records = Records(tmp_path / f"{FILE}-{rank}")
        for name in names:
            records.append(f"/{name}", [None, None])
    assert on_two_ranks(shared, tmp_path, str(tmp_path)) == [["first"], ["first"]]
