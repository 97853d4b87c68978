"""Class names and labels are checked for every dataset, the user's own included."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import TensorDataset

from compressbench.api.given_data import given_data
from compressbench.core.errors import UserError
from compressbench.data.images import Images
from tests.faults.datasets import (
    Mine,
    lines_given,
    lines_of,
    noise,
    png,
    random_pixels,
    write_images,
)


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))


NAMES = {
    ("a", "a"): "class names must differ, but 'a' occurs twice",
    ("a", " a "): "class names must differ, but 'a' occurs twice",
    ("a", ""): "class names must be texts and not empty, got ''",
    ("a", " "): "class names must be texts and not empty, got ' '",
    ("a", 1): "class names must be texts and not empty, got 1",
    ("a",): "at least two classes are needed",
}


@pytest.mark.parametrize("names", NAMES)
def test_row_35_names_differ_and_are_not_empty(names):
    with pytest.raises(UserError, match=NAMES[names]):
        lines_of(Mine(names))


def test_row_35_names_given_from_python_are_checked_as_well():
    given = given_data((noise(40, 0), torch.arange(40) % 2), class_names=["cat", "cat"])
    with pytest.raises(UserError, match="class names must differ, but 'cat' occurs twice"):
        lines_given(given)


LABELS = {
    "float32": torch.zeros(40),
    "bool": torch.arange(40) % 2 == 0,
    "int32": torch.arange(40, dtype=torch.int32) % 2,
    r"int64 \[40, 1\]": (torch.arange(40) % 2)[:, None],
    "row 39 of the train split has label -1": torch.arange(40) % 2 - 2 * (torch.arange(40) == 39),
    r"row 5 of the train split has label 2; with 2 class names labels are in \[0, 1\]":
        torch.arange(40) % 2 + 2 * (torch.arange(40) == 5) - (torch.arange(40) == 5).long(),
    "40 inputs, but 39 labels": torch.arange(39) % 2,
}  # fmt: skip


@pytest.mark.parametrize("message", LABELS)
def test_row_35_labels_are_class_numbers(message):
    with pytest.raises(UserError, match=message):
        lines_of(Mine(train=(noise(40, 0), LABELS[message])))


def test_row_35_negative_labels_of_files_are_no_class(tmp_path):
    encoded = [png(p, 1) for p in random_pixels(12, size=8)]
    path = write_images(tmp_path / "a.parquet", encoded, [0, 1, -1] * 4)
    with pytest.raises(UserError, match="row 2 has label -1, which often means that it has none"):
        Images(train=str(path)).manifest()


def test_row_35_a_class_without_rows_is_said():
    three = ("ant", "bee", "cat")
    lines = lines_of(Mine(three))
    assert lines == (
        "dataset: 1 of 3 classes have no train row: cat",
        "dataset: 1 of 3 classes have no validation row: cat",
    )


def test_row_35_files_that_name_their_labels_differently_are_refused(tmp_path):
    import pyarrow.parquet as pq

    paths = {}
    for seed, names in enumerate((["ant", "bee"], ["bee", "ant"])):
        encoded = [png(p, 1) for p in random_pixels(12, seed, size=8)]
        path = write_images(tmp_path / f"{seed}.parquet", encoded, [0, 1] * 6)
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        noted = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(pq.read_table(path).replace_schema_metadata(noted), path)
        paths[names[0]] = str(path)
    with pytest.raises(UserError, match=r"calls the classes of the test split \['bee', 'ant'\]"):
        Images(train=paths["ant"], test=paths["bee"]).manifest()


def test_row_35_splits_that_order_their_classes_differently_are_refused():
    train, test = (TensorDataset(noise(40, n), torch.arange(40) % 2) for n in range(2))
    train.classes, test.classes = ["ant", "bee"], ["bee", "ant"]
    with pytest.raises(UserError, match=r"data test: its classes are \['bee', 'ant'\], those of"):
        given_data((train, test))
    test.classes = ["ant", "bee"]
    assert given_data((train, test)).config["class_names"] == ["ant", "bee"]
