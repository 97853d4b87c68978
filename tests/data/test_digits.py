from __future__ import annotations

import json

import pytest
import torch
from sklearn.datasets import load_digits

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.data import digits
from compressbench.data.digits import Digits


def test_the_splits_are_all_of_the_digits_each_once():
    data = Digits()
    parts = [data.split(name) for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1079, 359, 359]
    images, labels = load_digits(return_X_y=True)
    expected = sorted((tuple(image), label) for image, label in zip(images, labels, strict=True))
    found = [
        (tuple((image.double().flatten() * 16 / 255).round().tolist()), int(label))
        for part in parts
        for image, label in zip(part.inputs, part.targets, strict=True)
    ]
    assert sorted(found) == expected


def test_inputs_are_uint8_and_prepared_ones_are_normalised():
    data = Digits()
    split = data.split("train")
    assert split.inputs.dtype == torch.uint8 and split.inputs.shape[1:] == data.spec.input_shape
    assert split.inputs.min() == 0 and split.inputs.max() == 255
    prepared = data.prepare(split.inputs)
    assert abs(prepared.mean()) < 1e-3 and abs(prepared.std() - 1) < 1e-3


def test_training_images_move_by_at_most_one_pixel():
    data = Digits()
    images = torch.zeros(100, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 4, 4] = 9
    places = data.augment(images, torch.Generator().manual_seed(0)).nonzero()[:, 2:]
    assert len(places) == 100 and places.min() == 3 and places.max() == 5


def test_the_manifest_follows_seed_and_options():
    def manifest(**options):
        return json.dumps(Digits(**options).manifest(), sort_keys=True)

    assert manifest() == manifest()
    others = [manifest(**o) for o in ({"split_seed": 1}, {"max_shift": 2}, {"metric": "f1_score"})]
    assert len({manifest(), *others}) == 4


def test_verify_notices_other_digits(monkeypatch):
    data = Digits()
    data.verify()
    data.manifest()
    loaded = digits._load()
    loaded.inputs[0, 0, 0, 0] += 1
    monkeypatch.setattr(digits, "_load", lambda: loaded)
    with pytest.raises(CheckFailedError, match="digits changed"):
        data.verify()


@pytest.mark.parametrize("max_shift", [-1, 8])
def test_shifts_beyond_the_image_are_refused(max_shift):
    with pytest.raises(UserError, match=rf"max_shift .* \[0, 7\], got {max_shift}"):
        Digits(max_shift=max_shift)
