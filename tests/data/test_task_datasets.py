"""Datasets of other tasks than classification: what they hold, against independent readings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_diabetes
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.data.array_file import array_file
from compressbench.data.descriptions import descriptions
from compressbench.data.diabetes import diabetes
from compressbench.data.digit_scenes import INK, digit_masks, digit_sets
from compressbench.data.digits import Digits
from compressbench.data.pictures import pictures
from compressbench.data.vibrations import vibrations
from compressbench.tasks.classification import CLASSIFICATION
from compressbench.tasks.multilabel import MultiLabel
from compressbench.tasks.reconstruction import Reconstruction
from compressbench.tasks.regression import Regression
from compressbench.tasks.segmentation import Segmentation

SPLITS = ("train", "validation", "test")


def test_diabetes_is_that_of_scikit_learn_and_its_errors_are_in_its_units():
    data = diabetes()
    assert [len(data.split(name)) for name in SPLITS] == [266, 88, 88]
    task, train, test = data.spec.task, data.split("train"), data.split("test")
    assert train.targets.mean() == pytest.approx(0, abs=1e-6)
    every = sorted(
        round(float(t), 3)
        for name in SPLITS
        for t in data.split(name).targets[:, 0] * task.scale[0] + task.offset[0]
    )
    assert every == sorted(load_diabetes().target.tolist())
    line = LinearRegression().fit(train.inputs.numpy(), train.targets.numpy())
    answers = torch.from_numpy(line.predict(test.inputs.numpy())).float()
    apart = (answers - test.targets).numpy() * task.scale[0]
    assert task.score("rmse", answers, test.targets) == pytest.approx(np.sqrt((apart**2).mean()))
    assert 45 < task.score("rmse", answers, test.targets) < 65  # the literature has about 54
    assert task.guess("rmse", test.targets, data.spec) > 65


def test_masks_and_sets_say_which_digits_are_where():
    masks, sets = digit_masks(scenes=40).split("train"), digit_sets(scenes=40).split("train")
    assert torch.equal(masks.inputs, sets.inputs)
    assert torch.equal(masks.targets > 0, masks.inputs[:, 0] >= INK)
    there = torch.stack([(masks.targets == d + 1).flatten(1).any(1) for d in range(10)], 1)
    assert torch.equal(there, sets.targets > 0)
    for data in (digit_masks(scenes=40), digit_sets(scenes=40)):
        for name in SPLITS:
            data.spec.task.check(data.spec, data.split(name), name)
    assert isinstance(digit_masks().spec.task, Segmentation)
    assert isinstance(digit_sets().spec.task, MultiLabel)
    again = digit_masks(scenes=40).split("train")
    assert torch.equal(again.inputs, masks.inputs)
    assert not torch.equal(digit_masks(scenes=40, scene_seed=1).split("train").inputs, again.inputs)


def test_digits_of_a_scene_come_from_their_own_split():
    digits = Digits()
    known = {n: {bytes(x.numpy().ravel()) for x in digits.split(n).inputs} for n in SPLITS}
    scenes = digit_masks(scenes=24, noise=0)
    for name in SPLITS:
        split = scenes.split(name)
        cells = split.inputs[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).reshape(-1, 64)
        drawn = {bytes(cell.numpy()) for cell in cells if bool(cell.any())}
        assert drawn
        assert drawn <= known[name]


def test_a_language_model_gets_the_text_and_what_follows():
    data = descriptions(length=16)
    train, test = data.split("train"), data.split("test")
    assert torch.equal(train.inputs[:, 1:], train.targets[:, :-1])
    assert torch.equal(train.targets[0, 7:8], train.inputs[1, :1])  # windows overlap by half
    text = bytes(test.inputs.flatten().tolist()).decode("utf-8", "replace")
    assert "data" in text.lower()
    data.spec.task.check(data.spec, test, "test")
    with pytest.raises(UserError, match=r"dataset\.length"):
        descriptions(length=4)


def test_anomalies_of_vibrations_are_found_by_what_principal_components_leave():
    data = vibrations()
    train, test = data.split("train"), data.split("test")
    assert not train.targets[:, 0].any()
    assert test.targets[:, 0].mean() == pytest.approx(1 / 3, abs=0.01)
    assert torch.equal(test.targets[:, 1:], test.inputs)
    few = PCA(16).fit(train.inputs.numpy())
    again = torch.from_numpy(few.inverse_transform(few.transform(test.inputs.numpy()))).float()
    errors = (again - test.inputs).square().mean(1)
    expected = roc_auc_score(test.targets[:, 0].numpy(), errors.numpy())
    found = Reconstruction().score("auc", again, test.targets)
    assert found == pytest.approx(expected)
    assert found > 0.8


@pytest.fixture
def file(tmp_path):
    def write(**arrays):
        path = tmp_path / "a.npz"
        np.savez(path, **arrays)
        return str(path)

    return write


def test_arrays_of_a_file_are_divided_or_taken_as_they_are_divided(file):
    inputs, targets = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 4
    data = array_file(CLASSIFICATION, file(inputs=inputs, targets=targets))
    assert [len(data.split(name)) for name in SPLITS] == [30, 10, 10] or sum(
        len(data.split(name)) for name in SPLITS
    ) == 50
    assert data.spec.class_names == ("0", "1", "2", "3")
    rows = torch.cat([data.split(name).inputs for name in SPLITS])
    assert {tuple(r) for r in rows.tolist()} == {tuple(r) for r in inputs.astype("f4").tolist()}
    own = file(train_inputs=inputs, train_targets=targets, test_inputs=inputs[:9] + 9,
               test_targets=targets[:9])  # fmt: skip
    data = array_file(CLASSIFICATION, own)
    assert len(data.split("test")) == 9
    assert len(data.split("train")) + len(data.split("validation")) == 50
    numbers = array_file(Regression(), file(inputs=inputs, targets=targets), names=["age"])
    assert numbers.split("train").targets.shape[1:] == (1,)
    assert numbers.spec.class_names == ("age",)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.ones((4, 2))}, "no array targets; it has inputs"),
        ({"targets": np.ones(4)}, "no array inputs"),
        ({"inputs": np.ones((4, 2)), "targets": np.ones(3)}, "one row per sample"),
        ({"inputs": np.ones(4), "targets": np.ones(4)}, "one row per sample"),
        ({"inputs": np.full((4, 2), np.nan), "targets": np.arange(4)}, "NaN"),
        ({"inputs": np.ones((4, 2), int), "targets": np.arange(4)}, "uint8 images or floats"),
        ({"inputs": np.ones((4, 2)), "targets": np.array(list("abcd"))}, "must be numbers"),
        ({"inputs": np.ones((4, 2)), "targets": np.array([{}] * 4)}, r"not an \.npz file"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(file, arrays, message):
    with pytest.raises(UserError, match=message):
        array_file(CLASSIFICATION, file(**arrays)).split("train")


def test_arrays_that_change_while_in_use_are_noticed(file):
    inputs, targets = np.ones((20, 2)), np.arange(20) % 2
    data = array_file(CLASSIFICATION, file(inputs=inputs, targets=targets))
    data.split("train")
    data.verify()
    file(inputs=2 * inputs, targets=targets)
    with pytest.raises(CheckFailedError, match="changed while in use"):
        data.verify()


def test_pictures_are_resized_and_cut_as_pillow_does(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (6, 30, 45, 3), dtype=np.uint8)
    for number, pixels in enumerate(drawn):
        folder = tmp_path / str(number % 2)
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    data = pictures(str(tmp_path), size=16, resize=20)
    rows = torch.cat([data.split(name).inputs for name in SPLITS])
    expected = {
        np.asarray(Image.fromarray(p).resize((30, 20), Image.Resampling.BICUBIC)
                   .crop((7, 2, 23, 18))).tobytes()
        for p in drawn
    }  # fmt: skip
    assert {row.permute(1, 2, 0).contiguous().numpy().tobytes() for row in rows} == expected
    prepared = data.prepare(rows[:1])
    by_hand = (rows[0, 1, 3, 5].item() / 255 - 0.456) / 0.224
    assert prepared[0, 1, 3, 5].item() == pytest.approx(by_hand, rel=1e-5)
    assert data.spec.class_names == ()
    with pytest.raises(UserError, match="at least three"):
        pictures(str(tmp_path / "1" / "none"))
