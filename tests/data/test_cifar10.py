from __future__ import annotations

import json
import shutil

import pytest
import torch

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.data import decode, partition
from compressbench.data.cifar10 import Cifar10
from compressbench.engine.data_identity import identify


def test_the_splits_hold_the_rows_of_the_files(cifar_root, tmp_path, pixels):
    rows = tmp_path / "rows.txt"
    rows.write_text("3\n17\n8\n")
    data = Cifar10(str(cifar_root), validation_rows=str(rows))
    images = torch.from_numpy(pixels(40)).permute(0, 3, 1, 2)
    assert data.split("validation").inputs.equal(images[[3, 8, 17]])
    assert data.split("validation").targets.tolist() == [3, 8, 7]
    others = [row for row in range(40) if row not in (3, 8, 17)]
    assert data.split("train").inputs.equal(images[others])
    test_images = torch.from_numpy(pixels(20, seed=1)).permute(0, 3, 1, 2)
    assert data.split("test").inputs.equal(test_images)
    assert data.spec.input_shape == (3, 32, 32) and data.spec.num_classes == 10


def test_splits_read_in_inference_mode_can_be_trained_on(cifar_root):
    with torch.inference_mode():
        split = Cifar10(str(cifar_root)).split("train")
    assert not split.inputs.is_inference() and not split.targets.is_inference()


def test_without_rows_a_fraction_of_each_class_validates(cifar_root):
    data = Cifar10(str(cifar_root), validation_fraction=0.25)
    assert data.split("validation").targets.bincount().tolist() == [1] * 10
    assert len(data.split("train")) == 30


def test_the_test_split_is_not_decoded_before_it_is_asked_for(cifar_root, monkeypatch):
    read = []
    decoded = partition.decoded
    monkeypatch.setattr(
        partition,
        "decoded",
        lambda source, form: (read.append(source.name), decoded(source, form))[1],
    )
    data = Cifar10(str(cifar_root))
    data.split("train"), data.split("validation"), data.manifest(), data.verify()
    assert not any("test.parquet" in name for name in read)
    data.split("test")
    assert any("test.parquet" in name for name in read)


def test_the_manifest_needs_no_decoding_and_tells_nothing_of_the_place(
    cifar_root, tmp_path, monkeypatch
):
    first = Cifar10(str(cifar_root)).manifest()
    monkeypatch.setattr(decode, "_open", lambda *_: pytest.fail("decoded an image"))
    moved = shutil.copytree(cifar_root, tmp_path / "elsewhere ä")
    assert Cifar10(str(moved)).manifest() == first
    assert str(tmp_path) not in json.dumps(first)


@pytest.mark.parametrize(
    "options",
    [{"split_seed": 1}, {"validation_fraction": 0.5}, {"flip": False}, {"crop_padding": 2}],
)
def test_the_manifest_follows_the_options(cifar_root, options):
    assert Cifar10(str(cifar_root), **options).manifest() != Cifar10(str(cifar_root)).manifest()


def test_a_changed_file_changes_the_manifest_and_fails_the_check(cifar_root, write_parquet, pixels):
    data = Cifar10(str(cifar_root))
    before = data.manifest()
    data.verify()
    labels = [row % 10 for row in range(40)]
    write_parquet(cifar_root / "train.parquet", pixels(40, seed=5), labels)
    with pytest.raises(CheckFailedError, match=r"train\.parquet changed"):
        data.verify()
    assert Cifar10(str(cifar_root)).manifest() != before


def test_augmented_images_keep_their_form_and_follow_the_generator(cifar_root):
    data = Cifar10(str(cifar_root))
    images = data.split("train").inputs
    first, again = (data.augment(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.equal(again) and first.shape == images.shape and first.dtype == torch.uint8
    plain = Cifar10(str(cifar_root), crop_padding=0, flip=False)
    assert plain.augment(images, torch.Generator().manual_seed(1)).equal(images)
    prepared = data.prepare(images)
    assert prepared.dtype == torch.float32
    pixel = (images[0, 1, 2, 3].item() / 255 - 0.4822) / 0.2435
    assert prepared[0, 1, 2, 3].item() == pytest.approx(pixel, abs=1e-5)


def test_a_missing_column_is_named_with_the_nearest(cifar_root):
    with pytest.raises(UserError, match=r"no column 'labels'; did you mean label\?"):
        Cifar10(str(cifar_root), label_column="labels").manifest()
    with pytest.raises(UserError, match="no column 'picture'; choose from img, label"):
        Cifar10(str(cifar_root), image_column="picture").split("train")


def test_data_that_were_moved_are_the_same(cifar_root, tmp_path):
    target = {"_target_": "compressbench.data.cifar10.Cifar10"}

    def found(root, **options):
        config = {**target, "root": str(root), **options}
        return identify(config, Cifar10(str(root), **options))

    before = found(cifar_root)
    moved = shutil.copytree(cifar_root, tmp_path / "elsewhere" / "renamed")
    assert found(moved) == before
    assert found(moved, validation_fraction=0.3) != before
