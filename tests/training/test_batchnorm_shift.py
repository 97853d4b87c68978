"""BatchNorm statistics moved by what a stage changed: closed forms, few images, two ranks."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.batchnorm import batchnorm_layers
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Context, DataSpec, Runtime, Split
from compressbench.training.batchnorm import (
    reestimate_batchnorm_,
    shift_batchnorm_,
)


class Noise:
    """Random images of an odd shape; `prepare` only changes the dtype."""

    spec = DataSpec("noise", (3, 7, 5), ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3)

    def __init__(self, images: int = 37) -> None:
        self.images = images

    def split(self, name: str) -> Split:
        assert name == "train", "only training images may be seen"
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randint(0, 256, (self.images, *self.spec.input_shape), generator=generator)
        return Split(inputs.to(torch.uint8), torch.arange(self.images) % 3)

    def prepare(self, inputs: Tensor) -> Tensor:
        return inputs.float() / 64 - 1.7

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        raise AssertionError("statistics are those of images that are not augmented")


class Net(nn.Module):
    """Two convolutions, of which one is called twice, and a linear layer, all with BatchNorm."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width)
        self.again, self.shared = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.fc, self.last = nn.Linear(width, 5), nn.BatchNorm1d(5)
        self.spare = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        for _ in range(2):
            x = x + F.relu(self.shared(self.again(x)))
        return self.last(self.fc(x.mean((2, 3))))


def context(images: int = 37, **runtime) -> Context:
    return Context(Noise(images), Runtime(**runtime), 5, Path(), lambda config: config)


def net(seed: int = 0, eps: float = 1e-5) -> Net:
    """With statistics like those of other images: variances up to three times as large or small."""
    torch.manual_seed(seed)
    model = Net()
    for layer in batchnorm_layers(model).values():
        layer.eps, layer.momentum = eps, None
    with torch.no_grad():
        model.train()(images())
    for layer in batchnorm_layers(model).values():
        layer.running_var.mul_(torch.empty_like(layer.running_var).uniform_(0.3, 3.0))
        layer.running_mean.add_(layer.running_var.sqrt() * torch.randn_like(layer.running_var))
        for values in (layer.weight, layer.bias):
            nn.init.normal_(values)
    return model.eval()


def images() -> Tensor:
    own = Noise()
    return own.prepare(own.split("train").inputs)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in model.state_dict().items() if "running" in n}


def test_where_nothing_changed_the_statistics_are_kept_bit_by_bit():
    model, before = net(), net()
    assert shift_batchnorm_(model, before, context(), 37, batch_size=16) == 3
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(("factor", "eps"), [(0.7, 1e-9), (3.0, 1e-9), (200.0, 1e-5), (20.0, 0.1)])
def test_scaled_and_shifted_channels_leave_the_outputs_as_they_were(factor, eps):
    model, before = net(eps=eps), net(eps=eps)
    gains = torch.tensor([1.0, 0.5, 2.0, 1.0, 1.5, 0.3])
    with torch.no_grad():
        model.conv.weight.mul_(factor * gains.view(-1, 1, 1, 1))
        model.again.bias.add_(torch.linspace(-3, 3, 6))
        model.fc.weight.mul_(factor)
        model.fc.bias.mul_(factor).sub_(4.0)
    shift_batchnorm_(model, before, context(), 37, batch_size=16)
    torch.testing.assert_close(model(images()), before(images()), rtol=2e-3, atol=2e-3)


def test_the_closed_form_of_a_first_layer():
    model, before = net(), net()
    with torch.no_grad():
        model.conv.weight.add_(0.2 * torch.randn_like(model.conv.weight))
    shift_batchnorm_(model, before, context(), 37, batch_size=64)
    with torch.no_grad():
        old, new = (m.conv(images()).double() for m in (before, model))
    mean, variance = before.bn.running_mean.double(), before.bn.running_var.double()
    for channel in range(6):
        a, b = old[:, channel].flatten(), new[:, channel].flatten()
        ratio = float(b.var(correction=0) / a.var(correction=0))
        wanted = b.mean() + (mean[channel] - a.mean()) * ratio**0.5
        assert float(model.bn.running_mean[channel]) == pytest.approx(float(wanted), rel=1e-4)
        wanted = (variance[channel] + before.bn.eps) * ratio - before.bn.eps
        assert float(model.bn.running_var[channel]) == pytest.approx(float(wanted), rel=1e-4)


def test_every_layer_keeps_mean_and_variance_of_what_it_normalizes():
    model, before = net(), net()
    with torch.no_grad():
        for layer in (model.conv, model.again, model.fc):
            layer.weight.mul_(torch.rand_like(layer.weight) > 0.4)
    shift_batchnorm_(model, before, context(), 37, batch_size=64)

    def normalized(which: Net) -> dict[str, list[Tensor]]:
        seen: dict[str, list[Tensor]] = {}
        for name, layer in batchnorm_layers(which).items():
            layer.register_forward_hook(
                lambda m, a, y, name=name: seen.setdefault(name, []).append(
                    (y - m.bias.view(1, -1, *[1] * (y.ndim - 2)))
                    / m.weight.view(1, -1, *[1] * (y.ndim - 2))
                )
            )
        with torch.no_grad():
            which(images())
        return seen

    after, wanted = normalized(model), normalized(before)
    for name in ("bn", "last"):
        for pick in (lambda v: v.mean, lambda v: v.std):
            new, old = (pick(s[name][0].transpose(0, 1).flatten(1))(1) for s in (after, wanted))
            torch.testing.assert_close(new, old, rtol=5e-2, atol=5e-2)


def test_measured_and_shifted_agree_for_statistics_that_were_measured():
    before, own = net(), context()
    for layer in batchnorm_layers(before).values():
        layer.eps = 1e-12
    reestimate_batchnorm_(before, own, 37, batch_size=64)
    model, measured = deepcopy(before), deepcopy(before)
    for each in (model, measured):
        with torch.no_grad():
            each.conv.weight.mul_(1.5).add_(0.1)
    shift_batchnorm_(model, before, own, 37, batch_size=64)
    reestimate_batchnorm_(measured, own, 37, batch_size=64)
    torch.testing.assert_close(model.bn.running_mean, measured.bn.running_mean)
    torch.testing.assert_close(model.bn.running_var, measured.bn.running_var)


@pytest.mark.parametrize("value", [0.0, 1e-7, 1.0])
def test_channels_that_were_constant_do_not_explode(value):
    before = net()
    with torch.no_grad():
        before.conv.weight[2] = 0.0
    model = deepcopy(before)
    with torch.no_grad():
        model.conv.weight[2] = value * torch.randn(3, 3, 3)
        model.conv.weight[4] = 0.0  # and one that is constant now
    shift_batchnorm_(model, before, context(), 37, batch_size=16)
    state = statistics(model)
    assert all(bool(torch.isfinite(v).all()) for v in state.values())
    new = model.conv(images())[:, 2]
    assert state["bn.running_var"][2] <= before.bn.running_var[2] + 1.1 * new.var()
    assert state["bn.running_var"][4] == 0.0
    assert bool(torch.isfinite(model(images())).all())
    outputs, wanted = model.bn(model.conv(images())), before.bn(before.conv(images()))
    limit = 10 * wanted[:, 4].abs().max()
    assert outputs[:, 4].abs().max() <= limit


def test_a_smaller_model_is_compared_channel_by_channel():
    before, own = net(), context()
    kept = torch.tensor([1, 2, 5])
    model = deepcopy(before)
    model.conv = nn.Conv2d(3, 3, 3, bias=False)
    model.again, model.shared = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
    model.bn, model.fc = nn.BatchNorm2d(3), nn.Linear(3, 5)
    for name in ("bn", "shared"):
        for values, old in zip(
            model.get_submodule(name).state_dict().values(),
            before.get_submodule(name).state_dict().values(),
            strict=True,
        ):
            values.copy_(old[kept] if old.ndim else old)
    with torch.no_grad():
        model.conv.weight.copy_(2.0 * before.conv.weight[kept])
    model.eval()
    shift_batchnorm_(model, before, own, 37, kept={"bn": kept, "shared": kept})
    torch.testing.assert_close(model.bn.running_mean, 2.0 * before.bn.running_mean[kept])
    torch.testing.assert_close(
        model.bn.running_var, 4.0 * before.bn.running_var[kept], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("count", [2, 3, 8])
def test_few_images_move_little_where_little_changed(count):
    before = net()
    model = deepcopy(before)
    with torch.no_grad():
        for layer in (model.conv, model.again, model.fc):
            layer.weight.add_(1e-3 * layer.weight.std() * torch.randn_like(layer.weight))
    shift_batchnorm_(model, before, context(), count)
    measured = deepcopy(before)
    reestimate_batchnorm_(measured, context(), count)
    for name, layer in batchnorm_layers(before).items():
        moved = (model.get_submodule(name).running_mean - layer.running_mean).abs().max()
        assert moved < 0.05 * layer.running_var.max().sqrt(), name
    assert (measured.bn.running_mean - before.bn.running_mean).abs().max() > 0.1


def test_flags_hooks_and_the_model_before_are_left_alone():
    model, before = net(), net()
    model.bn.weight.data.mul_(2)
    state = {n: v.clone() for n, v in before.state_dict().items()}
    shift_batchnorm_(model, before, context(max_batches=1), 37, batch_size=8)
    assert all(torch.equal(v, before.state_dict()[n]) for n, v in state.items())
    for each in (model, before):
        assert not any(m.training or m._forward_pre_hooks for m in each.modules())
    assert int(model.bn.num_batches_tracked) == int(before.bn.num_batches_tracked)


def test_a_layer_called_more_often_than_before_is_an_error():
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.last(torch.zeros(len(x), 5))

    before = net()
    model = Twice().eval()
    with pytest.raises(CheckFailedError, match="BatchNorm last is called more often"):
        shift_batchnorm_(model, before, context(), 37)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_inputs_may_be_given_by_keyword():
    class Keyword(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(input=self.fc(F.relu(self.bn(input=self.conv(x))).mean((2, 3))))

    results = []
    for kind in (Net, Keyword):
        before, found = net(), kind()
        found.load_state_dict(before.state_dict())
        model = deepcopy(found)
        with torch.no_grad():
            model.conv.weight.mul_(0.5)
        shift_batchnorm_(model, found, context(), 37)
        results.append(statistics(model))
        reestimate_batchnorm_(model, context(), 37)
        results.append(statistics(model))
    for shifted_or_measured in (0, 1):
        for name in ("bn.running_mean", "bn.running_var"):
            found, wanted = (results[n + shifted_or_measured][name] for n in (2, 0))
            torch.testing.assert_close(found, wanted)


def test_without_batchnorm_nothing_happens():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(105, 3))
    assert shift_batchnorm_(plain, deepcopy(plain), context(), 37) == 0
