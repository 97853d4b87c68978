"""Rows of one split in another are counted by their decoded content, said, and refused."""

from __future__ import annotations

import csv
import time

import pytest
import torch

from compressbench.api.given_data import given_data
from compressbench.core.errors import UserError
from compressbench.data.ag_news import AgNews
from compressbench.data.cifar10 import Cifar10
from compressbench.data.decode import decoded
from compressbench.data.images import Images
from compressbench.data.sources import Folder
from compressbench.engine import data_checks
from compressbench.engine.data_checks import count_rows
from tests.end_to_end.running import QUIET, run_here
from tests.faults.datasets import (
    Mine,
    lines_given,
    lines_of,
    noise,
    png,
    random_pixels,
    write_images,
)
from tests.sample_texts import write_news


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))


def cifar_like(folder, shared: int):
    """200 training and 100 test images, of which `shared` have the pixels of training images."""
    train, test = random_pixels(200), random_pixels(100, seed=1)
    test[:shared] = train[:shared]
    write_images(folder / "train.parquet", [png(p, 1) for p in train], [n % 10 for n in range(200)])
    write_images(folder / "test.parquet", [png(p, 9) for p in test], [n % 10 for n in range(100)])
    return folder


def test_row_30_an_image_that_was_encoded_again_is_the_same_row(tmp_path):
    folder = cifar_like(tmp_path / "cifar", shared=5)
    with pytest.raises(UserError, match=r"^dataset: 5 of 100 test rows \(5.0%\) are training or "
                       r"validation rows, too \(such as row 0, .*max_overlap=0.05$"):  # fmt: skip
        lines_of(Cifar10(str(folder)))
    (line,) = lines_of(Cifar10(str(folder)), most_shared=0.05)
    assert line.startswith("dataset: 5 of 100 test rows (5.0%)")


def test_row_30_the_run_is_refused_before_training_and_the_option_lets_it_pass(tmp_path):
    folder = cifar_like(tmp_path / "cifar", shared=5)
    wanted = ["dataset=cifar10", f"dataset.root={folder}", "model=mlp", "plan=true", *QUIET]
    refused = run_here(wanted, tmp_path, tmp_path / "store")
    assert refused.code == 1 and "5 of 100 test rows (5.0%)" in refused.line
    passed = run_here([*wanted, "max_overlap=0.05"], tmp_path, tmp_path / "store")
    assert passed.code == 0 and "WARNING: dataset: 5 of 100 test rows" in passed.out


@pytest.mark.parametrize("value", ["-0.1", "nan", "much"])
def test_row_30_the_share_has_a_range(tmp_path, value):
    done = run_here([f"max_overlap={value}", "plan=true", *QUIET], tmp_path, tmp_path / "store")
    assert done.code == 1 and "max_overlap must be a number in [0, 1], got" in done.line


def test_row_30_images_in_folders_and_the_whole_file_twice(tmp_path):
    pixels = random_pixels(24, size=8)
    for split, level in (("train", 1), ("test", 9)):
        for row, image in enumerate(pixels):
            path = tmp_path / "tree" / split / f"class{row % 2}" / f"{split}{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image, level))
    with pytest.raises(UserError, match=r"24 of 24 test rows \(100.0%\) .*max_overlap=1$"):
        lines_of(Images(root=str(tmp_path / "tree"), validation_fraction=0.2))
    file = str(write_images(tmp_path / "a.parquet", [png(p, 1) for p in pixels], [0, 1] * 12))
    other = [png(p, 1) for p in random_pixels(4, seed=1, size=8)]
    test = str(write_images(tmp_path / "b.parquet", other, [0, 1] * 2))
    with pytest.raises(UserError, match="24 of 24 validation rows"):
        lines_of(Images(train=file, validation=file, test=test))


def test_row_30_texts_are_compared_as_the_model_reads_them(tmp_path):
    write_news(tmp_path / "train.csv", 80)
    write_news(tmp_path / "test.csv", 40, seed=1)
    rows = list(csv.reader((tmp_path / "train.csv").open(encoding="utf-8", newline="")))
    with (tmp_path / "test.csv").open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([label, title.upper(), body] for label, title, body in rows[:10])
    data = AgNews(str(tmp_path), vocabulary=300)
    with pytest.raises(UserError, match=r"10 of 50 test rows \(20.0%\)"):
        lines_of(data)


def test_row_30_data_passed_from_python():
    inputs, targets = noise(40, 0), torch.arange(40) % 4
    with pytest.raises(UserError, match=r"40 of 40 test rows \(100.0%\)"):
        lines_given(given_data(((inputs, targets), (inputs.flip(0), targets.flip(0)))))
    test = torch.cat([noise(30, 1), inputs[:1] * 1.0])
    (line,) = lines_given(given_data(((inputs, targets), (test, torch.arange(31) % 30 % 4))), 0.04)
    assert line.startswith("dataset: 1 of 31 test rows (3.2%)")


def test_row_30_counts_agree_with_comparing_every_pair():
    drawn = torch.Generator().manual_seed(0)
    for _ in range(20):
        shape = (int(torch.randint(1, 40, (), generator=drawn)), 2)
        data = Mine(**{
            name: (torch.randint(-1, 2, shape, generator=drawn).float() * 0.5,
                   torch.randint(0, 2, shape[:1], generator=drawn))
            for name in ("train", "validation", "test")
        })  # fmt: skip
        splits = {name: data.split(name) for name in ("train", "validation", "test")}
        found = {each["split"]: each["count"] for each in count_rows(splits)["shared"]}
        train, validation, test = (s.inputs for s in splits.values())
        wanted = {"validation": _among(validation, train),
                  "test": _among(test, torch.cat([train, validation]))}  # fmt: skip
        assert found == {name: count for name, count in wanted.items() if count}


def _among(rows, others) -> int:
    return int((rows[:, None] == others[None]).all(2).any(1).sum())


def test_row_30_the_same_content_with_another_label_is_said():
    inputs, targets = noise(40, 0), torch.arange(40) % 2
    inputs[7] = inputs[2]  # label 1, and label 0
    (line,) = lines_of(Mine(train=(inputs, targets)))
    assert line == (
        "dataset: 1 rows have the content of another row but another class (such as train row 7 "
        "and train row 2)"
    )


def test_row_30_large_data_are_counted_once_and_faster_than_decoded(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    for row, image in enumerate(random_pixels(300)):
        path = tree / f"class{row % 2}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image, 6))
    data = Images(root=str(tree))
    begun = time.process_time()
    decoded(Folder(tree), data._form)
    decoding = time.process_time() - begun
    splits = {name: data.split(name) for name in ("train", "validation", "test")}
    begun = time.process_time()
    count_rows(splits)
    assert time.process_time() - begun < decoding / 2  # a thirtieth when this was written

    counted = []
    monkeypatch.setattr(data_checks, "_LARGE_BYTES", 1)
    monkeypatch.setattr(data_checks, "count_rows", lambda s: counted.append(1) or count_rows(s))
    assert lines_of(data) == lines_of(data) == ()
    assert len(counted) == 1
