"""What `compress` takes as data, and what it says to what it cannot take."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from compressbench.api.given_data import given_data
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.live_objects import live_objects
from compressbench.data.in_hand import DataInHand, digest
from compressbench.data.transforms import channel_statistics

N = 40
FLOATS = torch.linspace(-1, 1, N * 12).view(N, 3, 2, 2)
PIXELS = torch.arange(N * 12, dtype=torch.int64).remainder(256).to(torch.uint8).view(N, 3, 2, 2)
LABELS = torch.arange(N) % 4


class Pairs(Dataset):
    """A Dataset as people write them: arrays and plain integers, by index."""

    classes = ("ant", "bee", "cat", "dog")

    def __len__(self):
        return N

    def __getitem__(self, row):
        return FLOATS[row].numpy(), int(LABELS[row])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(FLOATS, LABELS, strict=True))


SAME = {
    "tensors": (FLOATS, LABELS),
    "arrays": (FLOATS.numpy(), LABELS.numpy()),
    "64 bit": (FLOATS.double(), LABELS.to(torch.uint8)),
    "a list of labels": (FLOATS, LABELS.tolist()),
    "a series of pandas": (FLOATS, pandas.Series(LABELS.numpy())),
    "TensorDataset": TensorDataset(FLOATS, LABELS),
    "Dataset": Pairs(),
    "IterableDataset": Stream(),
    "a list of pairs": list(zip(FLOATS, LABELS, strict=True)),
    "loader": DataLoader(Pairs(), batch_size=7),
    "shuffling loader": DataLoader(Pairs(), batch_size=7, shuffle=True, drop_last=True),
    "loader of a stream": DataLoader(Stream(), batch_size=7),
    "loader of single samples": DataLoader(Stream(), batch_size=None),
    "loader with its own batches": DataLoader(
        Pairs(), batch_size=7, collate_fn=lambda rows: (
            torch.tensor(np.stack([x for x, _ in rows])), torch.tensor([y for _, y in rows]))),
}  # fmt: skip


def opened(given, **options):
    """The dataset as a run has it."""
    with live_objects(given.live):
        data = DataInHand(**{k: v for k, v in given.config.items() if k != "_target_"}, **options)
        data.split("train")
    return data


@pytest.mark.parametrize("kind", SAME)
def test_one_thing_in_many_forms(kind):
    given = given_data(SAME[kind])
    assert torch.equal(given.splits["train"].inputs, FLOATS)
    assert torch.equal(given.splits["train"].targets, LABELS)
    assert given.config["sha256"] == given_data(SAME["tensors"]).config["sha256"]
    named = kind in ("Dataset", "loader", "shuffling loader", "loader with its own batches")
    assert given.config["class_names"] == (list(Pairs.classes) if named else list("0123"))


@pytest.mark.parametrize("sampler", [SubsetRandomSampler([7, 3, 11]), [3, 7, 11]])
def test_a_loader_of_some_rows_takes_no_others(sampler):
    given = given_data(DataLoader(Pairs(), sampler=sampler))
    assert torch.equal(given.splits["train"].inputs, FLOATS[[3, 7, 11]])


def test_a_sampler_that_repeats_is_followed():
    weights = [1.0] + [0.0] * (N - 1)
    given = given_data(DataLoader(Pairs(), sampler=WeightedRandomSampler(weights, 5)))
    assert torch.equal(given.splits["train"].inputs, FLOATS[[0] * 5])


def test_splits_are_given_or_cut_from_the_training_samples():
    train, rest = (FLOATS[:24], LABELS[:24]), (FLOATS[24:], LABELS[24:])
    data = opened(given_data((train, rest)))
    assert torch.equal(data.split("test").inputs, rest[0])
    assert len(data.split("train")) == 20 and len(data.split("validation")) == 4
    three = opened(given_data({"train": train, "validation": rest}))
    assert torch.equal(three.split("validation").targets, rest[1])
    assert len(three.split("train")) + len(three.split("test")) == 24
    alone = opened(given_data(Pairs()), validation_fraction=0.2, test_fraction=0.3)
    sizes = [len(alone.split(name)) for name in ("train", "validation", "test")]
    assert sizes == [20, 8, 12]
    rows = torch.cat([alone.split(name).inputs for name in ("train", "validation", "test")])
    assert torch.equal(rows.flatten(1).sort(0).values, FLOATS.flatten(1).sort(0).values)
    other = opened(given_data(Pairs()), split_seed=1)
    assert alone.manifest()["sha256"] == other.manifest()["sha256"]
    assert alone.manifest()["rows"] != other.manifest()["rows"]


def test_floats_are_taken_as_they_are_and_pixels_normalised():
    floats, pixels = opened(given_data((FLOATS, LABELS))), opened(given_data((PIXELS, LABELS)))
    assert floats.spec.mean == floats.spec.std == ()
    prepared = floats.prepare(floats.split("test").inputs)
    assert torch.equal(prepared, floats.split("test").inputs)
    prepared += 1  # a model may do so
    floats.verify()
    mean, std = channel_statistics(pixels.split("train").inputs)
    assert (pixels.spec.mean, pixels.spec.std) == (mean, std)
    normalised = pixels.prepare(pixels.split("train").inputs)
    assert torch.allclose(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(normalised.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)


def test_a_change_in_the_data_is_seen():
    images = FLOATS.clone()
    given = given_data((images, LABELS))
    data = opened(given)
    data.verify()
    images[3, 0, 0, 0] = 5.0
    assert digest(given.splits) != given.config["sha256"]
    with pytest.raises(CheckFailedError, match="changed while in use"):
        data.verify()


def test_data_that_nobody_holds_are_asked_for():
    options = given_data((FLOATS, LABELS)).config
    data = DataInHand(options["sha256"], options["class_names"])
    with pytest.raises(UserError, match="pass them again, to compressbench"):
        data.split("train")


def test_any_classes_of_a_larger_set():
    given = given_data((FLOATS, LABELS), class_names=[f"class {n}" for n in range(10)])
    assert opened(given).spec.num_classes == 10


class Records(Dataset):
    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, row):
        return self.samples[row]


MISTAKES = {
    "train sample 0: inputs must be tensors or arrays, got Image; give the Dataset a transform":
        Records((Image.new("L", (8, 8)), 0)),
    "train sample 0: must be a pair (input, target), got dict": Records({"image": FLOATS[0]}),
    "train sample 1: all inputs must have one shape, got [2, 2] after [3, 2, 2]":
        Records((FLOATS[0], 0), (FLOATS[0, 0], 1)),
    "train: holds no samples": Records(),
    "train: Pairs2 is not a torch Dataset": type("Pairs2", (), {})(),
    "a tuple of 4 is not a torch Dataset": (Pairs(),) * 4,
    "splits are train, validation and test, of which train is required; got training":
        {"training": Pairs()},
    "got test": {"test": Pairs()},
    "train: 40 inputs, but 3 targets": (FLOATS, LABELS[:3]),
    "train: inputs hold NaN or infinity": (FLOATS * float("nan"), LABELS),
    "uint8 inputs must be images [samples, 1 or 3 channels, height, width], got [40, 2, 2, 3]":
        (PIXELS.permute(0, 2, 3, 1), LABELS),
    "inputs must be uint8 images or floats, got torch.int64": (PIXELS.long(), LABELS),
    "inputs must be [samples, ...], got [40]": (FLOATS[:, 0, 0, 0], LABELS),
    "arrays must hold numbers, got object": (np.array([None, 1]), [0, 1]),
    "targets must be class numbers, integers [samples], got float32 [40]":
        (FLOATS, LABELS.float()),
    "integers [samples], got int64 [40, 1]": (FLOATS, LABELS[:, None]),
    "integers [samples], got <U3 [2]": Records((FLOATS[0], "ant"), (FLOATS[1], "bee")),
    "targets must be integers [samples]: setting an array element": (FLOATS, [[1], [1, 2]]),
    "train: targets must be in [0, 3], got -1": (FLOATS, LABELS - (LABELS == 1) * 2),
    "at least two classes": (FLOATS, LABELS * 0),
    "data test: inputs are torch.float32 [2, 2], those of train torch.float32 [3, 2, 2]":
        ((FLOATS, LABELS), (FLOATS[:, 0], LABELS)),
}  # fmt: skip


@pytest.mark.parametrize("line", MISTAKES)
def test_what_cannot_be_taken(line):
    with pytest.raises(UserError) as caught:
        given_data(MISTAKES[line])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_must_cover_the_targets():
    with pytest.raises(UserError, match=r"targets must be in \[0, 2\], got 3"):
        given_data((FLOATS, LABELS), class_names=["a", "b", "c"])


def test_too_few_samples_to_cut_a_split():
    data = given_data((FLOATS[:4], LABELS[:4]))
    with pytest.raises(UserError, match="too few samples for a validation split"):
        opened(data)


def test_subsets_say_what_their_dataset_says():
    assert given_data(Subset(Pairs(), range(8))).config["class_names"] == list(Pairs.classes)
