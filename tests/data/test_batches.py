from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressbench.core.errors import UserError
from compressbench.core.types import DataSpec, Split
from compressbench.data.batches import Batches, batch_count, batches


@dataclass(frozen=True)
class Numbered:
    """Image i holds the value i in every pixel and has the target i."""

    count: int

    @property
    def spec(self):
        return DataSpec("numbered", (1, 2, 2), ("a", "b"), (0.0,), (1.0,))

    def split(self, name):
        numbers = torch.arange(self.count)
        return Split(numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), numbers)

    def prepare(self, inputs):
        return inputs.float()

    def augment(self, inputs, generator):
        return inputs + torch.randint(0, 100, (1,), generator=generator).to(torch.uint8)


def seen(count, batch_size, **options):
    result = []
    for inputs, targets in batches(Numbered(count), "train", batch_size, **options):
        assert inputs.dtype == torch.float32 and targets.dtype == torch.int64
        assert inputs[:, 0, 0, 0].long().equal(targets)  # an image keeps its own target
        result.append(targets.tolist())
    return result


@settings(deadline=None)
@given(
    count=st.integers(1, 90),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 4),
    shuffle_seed=st.none() | st.integers(0, 99),
    limit=st.none() | st.integers(1, 100),
)
def test_shards_are_disjoint_and_cover_everything(
    count, batch_size, world_size, shuffle_seed, limit
):
    total = min(count, limit or count)
    shards = []
    for rank in range(min(world_size, total)):
        options = {"limit": limit, "rank": rank, "world_size": world_size}
        got = seen(count, batch_size, shuffle_seed=shuffle_seed, **options)
        assert len(got) == batch_count(count, batch_size, **options)
        shards += [image for batch in got for image in batch]
    assert len(shards) == len(set(shards)) == total
    if shuffle_seed is None:
        assert sorted(shards) == list(range(total))


@settings(deadline=None)
@given(count=st.integers(1, 90), batch_size=st.integers(1, 20), world_size=st.integers(1, 3))
def test_drop_last_gives_every_rank_the_same_number_of_full_batches(count, batch_size, world_size):
    expected = count // world_size // batch_size
    if expected == 0:
        with pytest.raises(UserError, match=f"batch of {batch_size} .* {count} images"):
            seen(count, batch_size, shuffle_seed=0, world_size=world_size, drop_last=True)
        return
    images = []
    for rank in range(world_size):
        got = seen(
            count, batch_size, shuffle_seed=0, rank=rank, world_size=world_size, drop_last=True
        )
        assert [len(batch) for batch in got] == [batch_size] * expected
        images += [image for batch in got for image in batch]
    assert len(set(images)) == len(images)


def test_a_seed_fixes_the_order_and_another_seed_changes_it():
    assert seen(50, 8, shuffle_seed=3) == seen(50, 8, shuffle_seed=3)
    assert seen(50, 8, shuffle_seed=3) != seen(50, 8, shuffle_seed=4)
    assert seen(50, 8) == [list(range(start, min(start + 8, 50))) for start in range(0, 50, 8)]


def test_augmentation_follows_the_seed_and_differs_between_ranks():
    def first(seed, rank=0):
        loader = batches(
            Numbered(20), "train", 5, shuffle_seed=seed, augment=True, rank=rank, world_size=2
        )
        inputs, targets = next(loader)
        return int(inputs[0, 0, 0, 0]) - int(targets[0])

    assert first(0) == first(0)
    assert len({first(seed) for seed in range(8)}) > 1
    assert any(first(seed) != first(seed, rank=1) for seed in range(4))


def test_a_pass_can_be_repeated_and_knows_its_length():
    loader = Batches(Numbered(11), "train", 4, shuffle_seed=5)
    passes = [[targets.tolist() for _, targets in loader] for _ in range(2)]
    assert passes[0] == passes[1]
    assert len(loader) == len(passes[0]) == 3


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 4, "limit": 0}])
def test_impossible_numbers_are_refused(options):
    with pytest.raises(UserError, match="at least 1, got 0"):
        Batches(Numbered(5), "train", **options)
