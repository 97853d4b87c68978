"""A model's class gets what the data determine, under the names that its signature has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from compressbench.core.types import DataSpec, Tokens
from compressbench.data.digits import Digits
from compressbench.engine.data_options import takes_texts, with_data_options
from compressbench.engine.model_config import checked_architecture
from compressbench.engine.stage_job import build_model

MODULE = "tests.engine.test_data_options"
IMAGES = DataSpec("photos", (3, 20, 20), tuple("abcdefg"), (0.5,) * 3, (0.5,) * 3)
WIDE = DataSpec("photos", (3, 20, 30), tuple("abcdefg"), (0.5,) * 3, (0.5,) * 3)
FLOATS = DataSpec("sensors", (12,), ("on", "off"), (), ())
TEXTS = DataSpec("news", (16,), ("a", "b", "c"), (), (), tokens=Tokens(99, 1, ""))


def ours(input_shape, num_classes, width=4):
    raise NotImplementedError


def timm_like(in_chans=3, num_classes=1000, img_size=224):
    raise NotImplementedError


def hub_like(num_channels, num_labels, image_size):
    raise NotImplementedError


def tutorial(input_size, hidden_size, n_classes):
    raise NotImplementedError


def cnn_with_size(in_channels, classes, input_size):
    raise NotImplementedError


def perceptron(in_features, out_features, hidden=8):
    raise NotImplementedError


def reader(vocab_size, padding_idx, max_len, n_classes):
    raise NotImplementedError


def anything(**options):
    raise NotImplementedError


def partly_named(in_channels, **options):
    raise NotImplementedError


def needs_more(in_channels, num_classes, growth):
    raise NotImplementedError


@pytest.fixture(autouse=True)
def _allowed(allow):
    allow(f"{MODULE}.*")


def given(target, spec, **options):
    config = {"_target_": f"{MODULE}.{target.__name__}", **options}
    found = with_data_options(config, spec, "model")
    assert found.pop("_target_") == config["_target_"]
    return found


@pytest.mark.parametrize(
    ("target", "spec", "options"),
    [
        (ours, IMAGES, {"input_shape": [3, 20, 20], "num_classes": 7}),
        (timm_like, IMAGES, {"in_chans": 3, "num_classes": 7, "img_size": 20}),
        (timm_like, WIDE, {"in_chans": 3, "num_classes": 7, "img_size": [20, 30]}),
        (hub_like, IMAGES, {"num_channels": 3, "num_labels": 7, "image_size": 20}),
        (cnn_with_size, IMAGES, {"in_channels": 3, "classes": 7, "input_size": 20}),
        (perceptron, IMAGES, {"in_features": 1200, "out_features": 7}),
        (perceptron, FLOATS, {"in_features": 12, "out_features": 2}),
        (reader, TEXTS, {"vocab_size": 99, "padding_idx": 1, "max_len": 16, "n_classes": 3}),
        (anything, IMAGES, {"input_shape": [3, 20, 20], "num_classes": 7}),
        (partly_named, IMAGES, {"in_channels": 3, "num_classes": 7}),
    ],
)
def test_a_class_gets_what_its_signature_takes(target, spec, options):
    assert given(target, spec) == options


def test_a_tutorial_network_gets_the_number_of_inputs():
    found = given(tutorial, IMAGES, hidden_size=5)
    assert found == {"input_size": 1200, "hidden_size": 5, "n_classes": 7}


def test_what_the_yaml_says_stays():
    assert given(timm_like, IMAGES, img_size=224, in_chans=1)["img_size"] == 224
    assert given(timm_like, IMAGES, img_size=224, in_chans=1)["in_chans"] == 1


def test_another_number_of_classes_than_the_data_have_is_refused():
    with pytest.raises(UserError, match=r"model\.num_labels=5, but dataset photos has 7 classes"):
        given(hub_like, IMAGES, num_labels=5)


def test_what_neither_yaml_nor_data_tell_is_named():
    with pytest.raises(UserError, match=r"model\.growth is required by .*needs_more, and the data"):
        given(needs_more, IMAGES)


@pytest.mark.parametrize(("target", "found"), [(reader, True), (hub_like, False), (anything, None)])
def test_a_class_that_takes_a_vocabulary_is_one_for_texts(target, found):
    assert takes_texts({"_target_": f"{MODULE}.{target.__name__}"}, "model") is found


class Ordinary(nn.Module):
    """A class as people write it, without a thought of us."""

    def __init__(self, in_channels=3, n_classes=1000, width=6):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(in_channels, width, 3), nn.Linear(width, n_classes)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def sequential(in_channels, num_classes):
    """A function that returns a module of torch."""
    return nn.Sequential(nn.Conv2d(in_channels, 4, 8), nn.Flatten(), nn.Linear(4, num_classes))


@pytest.mark.parametrize("target", ["Ordinary", "sequential"])
def test_the_stored_config_builds_the_model_again(target):
    config, path, model = checked_architecture(
        {"_target_": f"{MODULE}.{target}", "checkpoint": None}, Digits(), "model"
    )
    assert path is None
    again = build_model(config)
    again.load_state_dict(model.state_dict())
    inputs = torch.rand(2, 1, 8, 8)
    assert again(inputs).equal(model(inputs))
    assert model(inputs).shape == (2, 10)
