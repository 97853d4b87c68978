"""Datasets that are missing, damaged, empty, of one class, or changed while they are in use."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import shutil

import pytest
import torch

from compressbench.api.given_data import given_data
from compressbench.core.errors import TransientError, UserError
from compressbench.data import splits
from compressbench.data.cifar10 import Cifar10
from compressbench.data.images import Images
from tests.data.conftest import cifar_root, pixels, store, write_parquet  # noqa: F401
from tests.faults.datasets import Mine, lines_of, noise, png, random_pixels, write_images


def test_row_15_an_unset_or_empty_root_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.root is not set: add dataset\.root="):
        Cifar10()
    with pytest.raises(UserError, match=r"dataset\.root=.*: no train\.parquet there"):
        Cifar10(str(tmp_path))


def test_row_15_a_truncated_file_is_refused(cifar_root):
    path = cifar_root / "train.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"train\.parquet: not a valid parquet file: [^\n]+$"):
        Cifar10(str(cifar_root)).split("train")


def test_row_15_a_damaged_page_is_refused(cifar_root):
    path = cifar_root / "train.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:8] + bytes(2000) + content[2008:])
    with pytest.raises(UserError, match=r"train\.parquet[: ][^\n]+$"):
        Cifar10(str(cifar_root)).split("train")


@pytest.mark.parametrize("label", [10, -1])
def test_row_15_labels_out_of_range_are_refused(cifar_root, write_parquet, pixels, label):
    write_parquet(cifar_root / "train.parquet", pixels(12), [0] * 11 + [label])
    with pytest.raises(
        UserError, match=rf"row 11: label must be an integer in \[0, 9\], got {label}"
    ):
        Cifar10(str(cifar_root)).manifest()


def test_row_15_no_images_at_all_are_refused(cifar_root, write_parquet):
    import pyarrow as pa

    write_parquet(cifar_root / "train.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(UserError, match="contains no images"):
        Cifar10(str(cifar_root)).split("train")


def test_row_15_too_few_images_for_a_validation_split_are_refused(
    cifar_root, write_parquet, pixels
):
    write_parquet(cifar_root / "train.parquet", pixels(3), [0, 1, 2])
    with pytest.raises(UserError, match="too few images for a validation split"):
        Cifar10(str(cifar_root)).manifest()


def test_row_15_a_file_that_changes_in_use_is_told_and_no_fault_of_the_settings(cifar_root):
    data = Cifar10(str(cifar_root))
    data.split("train")
    data.manifest()
    with (cifar_root / "test.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(TransientError, match=r"test\.parquet changed while in use"):
        data.verify()


def test_row_15_a_file_that_vanishes_in_use_is_one_line(cifar_root):
    data = Cifar10(str(cifar_root))
    data.manifest()
    shutil.move(cifar_root / "test.parquet", cifar_root / "gone.parquet")
    with pytest.raises(TransientError, match=r"test\.parquet can no longer be read"):
        data.verify()


def test_row_15_one_class_only(tmp_path):
    encoded = [png(p, 1) for p in random_pixels(12, size=8)]
    path = write_images(tmp_path / "a.parquet", encoded, [4] * 12)
    with pytest.raises(UserError, match=r"at least two classes are needed, got \[4\]"):
        Images(train=str(path)).manifest()
    with pytest.raises(UserError, match="at least two classes are needed"):
        given_data((noise(40, 0), torch.zeros(40, dtype=torch.int64)))
    one = (noise(20, 1), torch.ones(20, dtype=torch.int64))
    assert lines_of(Mine(validation=one)) == ("dataset: 1 of 2 classes have no validation row: a",)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_row_15_an_empty_split(split):
    empty = (noise(0, 0), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match=f"the {split} split is empty"):
        lines_of(Mine(**{split: empty}))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_row_15_labels_out_of_range_in_any_split(split):
    with pytest.raises(UserError, match=rf"row 9 of the {split} split has label 2; with 2 class"):
        lines_of(Mine(**{split: (noise(10, 5), torch.tensor([0, 1] * 4 + [0, 2]))}))


@pytest.mark.parametrize("seed", range(5))
def test_row_15_splits_that_are_drawn_never_overlap(seed):
    """Calibration takes training rows, so they never meet a validation or test row either."""
    drawn = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 7, (200,), generator=drawn)
    rows = splits.stratified(targets, {"validation": 0.2, "test": 0.3}, seed)
    together = torch.cat(list(rows.values())).sort().values
    assert torch.equal(together, torch.arange(200))
