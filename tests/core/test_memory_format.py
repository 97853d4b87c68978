"""Channels last: the same sums in another order, and only for models that take it."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from compressbench.core.memory_format import channels_last
from compressbench.core.types import TRAINED, Artifact, DataSpec
from compressbench.models.resnet import ResNet
from compressbench.training.fits.fit import fit_
from compressbench.training.losses.hinton import Hinton
from compressbench.training.teaching.objective import lesson
from tests.training.test_fit import Blobs, context, schedule

CPU = torch.device("cpu")


class Views(nn.Module):
    """As many models of others do: it reads the map in the usual order."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 5, 3), nn.Linear(5 * 6 * 5, 2)

    def forward(self, images):
        return self.last(self.first(images).view(len(images), -1))


class Strides(nn.Identity):
    """Notes whether what it gets has the channels innermost."""

    def forward(self, found):
        self.innermost = found.stride(1) == 1
        return found


def looking(width):
    return nn.Sequential(Strides(), nn.Conv2d(3, width, 3), nn.ReLU(), Strides())


def test_maps_have_their_channels_innermost_within_it_alone():
    model, images = looking(7), torch.randn(4, 3, 8, 7)
    for inside in (True, False):
        if inside:
            with channels_last(model, images[:2], CPU):
                model(images)
        else:
            model(images)
        assert (model[0].innermost, model[3].innermost) == (inside, inside)


def test_it_changes_outputs_and_gradients_by_rounding_alone():
    torch.manual_seed(0)
    model = ResNet((3, 13, 11), 4, depth=8, base_width=6).double()
    images = torch.randn(5, 3, 13, 11).double()
    found = []
    for example in (images, images.flatten(1)):  # the latter is no image, so nothing changes
        model.zero_grad()
        with channels_last(model, example, CPU):
            logits = model(images)
            logits.square().sum().backward()
        found.append([logits, *(p.grad.clone() for p in model.parameters())])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(2, 3, 8, 7), (2, 1, 8, 7)])
def test_the_order_of_one_channel_stays(shape):
    model = nn.Sequential(Strides(), nn.Conv2d(shape[1], 4, 3), Strides())
    with channels_last(model, torch.zeros(shape), CPU):
        model(torch.randn(shape))
    assert model[2].innermost == (shape[1] > 1)


def test_a_model_that_cannot_take_it_gets_the_usual_order():
    model, images = Views(), torch.randn(4, 3, 8, 7)
    plain = model(images)
    with channels_last(model, images[:2], CPU):
        assert torch.equal(model(images), plain)


def test_the_look_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with channels_last(model, torch.randn(2, 3, 8, 7), CPU):
        assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_accelerator_keeps_its_own():
    model = looking(4)
    with channels_last(model, torch.zeros(2, 3, 8, 7), torch.device("meta")):
        model(torch.randn(2, 3, 8, 7))
    assert not model[3].innermost


@dataclass
class Colours(Blobs):
    spec = DataSpec("colours", (3, 2, 3), ("a", "b"), (0.5,) * 3, (0.25,) * 3)

    def split(self, name):
        found = super().split(name)
        return replace(found, inputs=found.inputs.repeat(1, 3, 1, 1))


class Counted(nn.Module):
    """Notes for every batch, in copies of it too, whether the channels were innermost."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
        self.noted = []

    def __deepcopy__(self, memo):
        copy = Counted()
        copy.load_state_dict(self.state_dict())
        copy.noted = self.noted
        return copy

    def forward(self, images):
        self.noted.append(self.conv(images).stride(1) == 1)
        return self.fc(self.conv(images).mean((2, 3)))


def test_a_fit_and_its_teacher_get_their_images_so(tmp_path):
    student, teacher = Counted(), Counted()
    place = replace(context(tmp_path), data=Colours())
    taught = Artifact(teacher, {}, (), frozenset({TRAINED}))
    with lesson(student, {"teacher": taught}, Hinton(), schedule(1), place) as loss:
        fit_(student, loss, schedule(1), place)
    for noted in (student.noted, teacher.noted):
        assert len(noted) >= 6, "a look and the steps"
        assert all(noted)
