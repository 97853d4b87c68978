from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.data.batches import batches
from compressbench.data.images import Images


@pytest.fixture
def tree(tmp_path, write_folder, pixels):
    """root/{train,test}/{cat,dog,owl}, 12x9 grey images."""

    def make(*splits, root=tmp_path / "photos ä"):
        for number, split in enumerate(splits):
            folder = root / split if split else root
            classes = ("cat", "dog", "owl")
            images = {c: pixels(10, 12, 9, 1, seed=9 * number + k) for k, c in enumerate(classes)}
            write_folder(folder, images)
        return root

    return make


@pytest.fixture
def parquet(tmp_path, write_parquet, pixels):
    def make(labels, *, name="train.parquet", seed=0, **options):
        images = pixels(len(labels), 6, 8, seed=seed)
        return str(write_parquet(tmp_path / name, images, labels, **options))

    return make


def test_a_folder_with_splits(tree):
    data = Images(root=str(tree("train", "validation", "test")), crop_padding=1)
    assert data.spec.class_names == ("cat", "dog", "owl")
    assert data.spec.input_shape == (1, 12, 9)
    for name in ("train", "validation", "test"):
        split = data.split(name)
        assert split.inputs.shape == (30, 1, 12, 9)
        assert split.targets.bincount().tolist() == [10, 10, 10]
    assert not data.split("train").inputs.equal(data.split("test").inputs)


def test_a_folder_of_classes_is_divided(tree, pixels):
    data = Images(root=str(tree("")), validation_fraction=0.1, test_fraction=0.3)
    parts = {name: data.split(name) for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 18,
        "validation": 3,
        "test": 9,
    }
    found = sorted(i.numpy().tobytes() for part in parts.values() for i in part.inputs)
    assert found == sorted(i.tobytes() for k in range(3) for i in pixels(10, 12, 9, 1, seed=k))


def test_normalised_training_images_have_mean_zero_and_deviation_one(tree):
    data = Images(root=str(tree("train")))
    prepared = torch.cat([x for x, _ in batches(data, "train", 7)])
    assert abs(prepared.mean()) < 1e-4 and abs(prepared.std(unbiased=False) - 1) < 1e-4


def test_parquet_with_text_labels_and_raw_bytes(parquet):
    labels = ["zebra", "ant"] * 6
    columns = {"struct": False, "columns": ["picture", "kind"]}
    data = Images(
        train=parquet(labels, **columns),
        test=parquet(["ant", "zebra"], name="test.parquet", seed=1, **columns),
        image_column="picture",
        label_column="kind",
    )
    assert data.spec.class_names == ("ant", "zebra") and data.spec.input_shape == (3, 6, 8)
    assert data.split("test").targets.tolist() == [0, 1]
    both = torch.cat([data.split("train").targets, data.split("validation").targets])
    assert both.bincount().tolist() == [6, 6]


def test_several_files_make_one_split(parquet, pixels):
    paths = [parquet([3, 7] * 5, name=f"{n}.parquet", seed=n) for n in range(2)]
    data = Images(train=paths, test_fraction=0.2, validation_fraction=0.2)
    assert data.spec.class_names == ("3", "7")
    parts = [data.split(name).inputs for name in ("train", "validation", "test")]
    expected = np.concatenate([pixels(10, 6, 8, seed=n) for n in range(2)]).transpose(0, 3, 1, 2)
    found = sorted(image.numpy().tobytes() for part in parts for image in part)
    assert found == sorted(image.tobytes() for image in expected)


def test_declared_names_bound_the_labels(parquet):
    path = parquet([0, 1, 2, 0, 1, 2] * 3)
    assert Images(train=path, class_names=["x", "y", "z"]).spec.class_names == ("x", "y", "z")
    with pytest.raises(UserError, match=r"row 2: label must be an integer in \[0, 1\], got 2"):
        Images(train=path, class_names=["x", "y"]).manifest()


def test_a_label_unknown_to_training_is_refused(parquet):
    data = Images(
        train=parquet(["a", "b"] * 5), test=parquet(["a", "c"], name="test.parquet", seed=1)
    )
    data.split("train")
    with pytest.raises(UserError, match=r"test\.parquet row 1: label must be one of a, b, got 'c'"):
        data.split("test")


@pytest.mark.parametrize(("size", "shape"), [(5, (3, 5, 5)), ([4, 7], (3, 4, 7))])
def test_the_size_can_be_chosen(parquet, size, shape):
    data = Images(train=parquet([0, 1] * 6), image_size=size, crop_padding=1)
    assert data.split("train").inputs.shape[1:] == data.spec.input_shape == shape


def test_channels_can_be_chosen(tree):
    data = Images(root=str(tree("train")), channels=3)
    assert data.spec.input_shape == (3, 12, 9) and len(data.spec.mean) == 3


def test_the_manifest_lists_every_file_by_relative_name(tree, tmp_path):
    data = Images(root=str(tree("train", "test")))
    manifest = data.manifest()
    assert len(manifest["files"]["train"]) == 30
    assert manifest["files"]["test"][0]["path"] == "cat/000.png"
    assert str(tmp_path) not in json.dumps(manifest)
    other = tree("train", "test", root=tmp_path / "other")
    assert Images(root=str(other)).manifest() == manifest


@pytest.mark.parametrize(
    "options", [{"image_size": 6}, {"channels": 3}, {"split_seed": 1}, {"flip": False}]
)
def test_the_manifest_follows_the_choices(tree, options):
    root = str(tree("train"))
    assert Images(root=root, **options).manifest() != Images(root=root).manifest()


def test_a_changed_image_fails_the_check(tree):
    root = tree("train")
    data = Images(root=str(root))
    data.manifest()
    path = root / "train" / "dog" / "004.png"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckFailedError, match=r"dog/004\.png changed"):
        data.verify()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set either dataset.train=.* neither is set"),
        ({"root": "a", "train": "b"}, "both are set"),
        ({"root": "a", "test": "b"}, "need dataset.train, not root"),
        ({"train": "a", "channels": 2}, "channels must be 1, 3 or null, got 2"),
        ({"train": "a", "image_size": 0}, "image_size must be .* got 0"),
        ({"train": "a", "image_size": [4, 4, 4]}, "image_size must be"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Images(**options)


def test_a_missing_file_or_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent\.parquet: no such file"):
        Images(train=str(tmp_path / "absent.parquet")).manifest()
    with pytest.raises(UserError, match="absent is not a folder"):
        Images(root=str(tmp_path / "absent")).manifest()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no subfolders; one folder per class is needed"):
        Images(root=str(tmp_path / "empty")).manifest()


def test_a_class_without_images_is_refused(tree):
    root = tree("train")
    (root / "train" / "yak").mkdir()
    with pytest.raises(UserError, match=r"yak: no \.png"):
        Images(root=str(root)).manifest()


def test_one_class_only_is_refused(parquet):
    with pytest.raises(UserError, match=r"at least two classes are needed, got \[4\]"):
        Images(train=parquet([4, 4, 4])).manifest()


def test_labels_that_are_no_labels_are_refused(parquet):
    with pytest.raises(UserError, match="labels must be integers or text, 'label' has double"):
        Images(train=parquet([0.5, 1.5])).manifest()
    with pytest.raises(UserError, match="column 'label' has rows without a label"):
        Images(train=parquet([0, None, 1])).manifest()


def test_a_column_that_holds_no_images_is_refused(parquet):
    with pytest.raises(UserError, match=r"images must be PNG or JPEG bytes.*'label' has int64"):
        Images(train=parquet([0, 1] * 3), image_column="label").split("train")


def test_padding_larger_than_the_images_is_refused(parquet):
    with pytest.raises(UserError, match=r"crop_padding of .* 6x8 must be .* in \[0, 5\], got 6"):
        Images(train=parquet([0, 1] * 6), crop_padding=6).split("train")
