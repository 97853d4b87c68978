"""Bias correction: against a slow loop, alone and on two ranks; the mean error of the outputs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compressbench.core import artifact
from compressbench.core.errors import CheckFailedError
from compressbench.core.grid import Grid, choose_scale, round_to_grid
from compressbench.core.types import Artifact, Context, DataSpec, Runtime, Split
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.preparation.bias_correction import correct_bias_
from compressbench.quantization.preparation.folding import fold_batchnorm_
from tests.quantization.preparation_zoo import SHAPE, Concatenation, Residual, digits, make, trained
from tests.two_ranks import on_two_ranks

EXAMPLE = torch.zeros(2, *SHAPE)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Noise:
    images: int = 40

    @property
    def spec(self) -> DataSpec:
        return DataSpec("noise", SHAPE, tuple("abcd"), (0.0,) * 3, (1.0,) * 3)

    def split(self, name: str) -> Split:
        assert name == "train", "only training images may be seen"
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randint(0, 256, (self.images, *SHAPE), generator=generator)
        return Split(inputs.to(torch.uint8), torch.arange(self.images) % 4)

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.float() / 64


def context(data=None) -> Context:
    return Context(data or Noise(), Runtime(), 5, Path(), lambda config: config)


def rounded(model: nn.Module, bits: int) -> tuple[nn.Module, list[str]]:
    """Weights at `bits`, one scale per tensor; the names of the layers, in forward order."""
    model, grid, names = deepcopy(model), Grid(bits, "tensor"), []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.requires_grad_(False)
            scale, _ = choose_scale(layer.weight, grid, MinMax())
            layer.weight.data = round_to_grid(layer.weight, scale, grid).weight
            names.append(name)
    return model, names


def folded(kind=Residual, seed: int = 0) -> nn.Module:
    model = make(kind, seed)
    fold_batchnorm_(model, EXAMPLE)
    return model


def output_of(model: nn.Module, name: str, inputs: torch.Tensor) -> torch.Tensor:
    caught = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, a, o: caught.append(o))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return caught[0].transpose(0, 1).flatten(1).mean(1)


def corrected_slowly(model, reference, names, inputs) -> nn.Module:
    """The definition: one pass over everything for each layer, after those before it."""
    model = deepcopy(model)
    for name in names:
        shift = output_of(reference, name, inputs) - output_of(model, name, inputs)
        layer = model.get_submodule(name)
        layer.bias.data = layer.bias.data + shift
    return model


def test_one_batch_is_the_definition():
    reference = folded()
    model, names = rounded(reference, 3)
    own = context()
    slow = corrected_slowly(
        model, reference, names, own.data.prepare(own.data.split("train").inputs)
    )
    weights = deepcopy(reference.state_dict())
    assert correct_bias_(model, reference, names, own, 40, batch_size=40) is None
    for name in names:
        torch.testing.assert_close(
            model.get_submodule(name).bias, slow.get_submodule(name).bias, rtol=1e-4, atol=1e-5
        )
    assert all(torch.equal(v, weights[n]) for n, v in reference.state_dict().items())
    assert not any(m._forward_hooks for each in (model, reference) for m in each.modules())


def test_several_batches_come_close_to_it():
    reference = folded()
    model, names = rounded(reference, 3)
    own = context()
    inputs = own.data.prepare(own.data.split("train").inputs)
    slow = corrected_slowly(model, reference, names, inputs)
    before = deepcopy(model)
    correct_bias_(model, reference, names, own, 40, batch_size=16)  # 16, 16 and 8 images
    for name in names:
        shift = slow.get_submodule(name).bias - before.get_submodule(name).bias
        error = model.get_submodule(name).bias - slow.get_submodule(name).bias
        assert error.norm().item() < 0.05 * shift.norm().item()
    first = names[0]  # nothing before it: exact
    torch.testing.assert_close(model.get_submodule(first).bias, slow.get_submodule(first).bias)


def test_a_layer_without_bias_gets_one_and_a_norm_keeps_its_shift(tmp_path):
    reference = make(Concatenation, 2)
    reference.out = nn.Conv2d(9, 4, 3, bias=False)
    model, names = rounded(reference, 2)
    left = model.left.bias.clone()
    edit = correct_bias_(model, reference, names, context(), 40)
    assert edit == {"kind": "bias", "layers": ["out"]}
    assert torch.equal(model.left.bias, left)
    assert model.right.bias is None
    assert model.out.bias.abs().max() > 0
    made = Artifact(model, {}, (edit,), frozenset())
    artifact.save(made, tmp_path)

    def build(config):
        fresh = Concatenation()
        fresh.out = nn.Conv2d(9, 4, 3, bias=False)
        return fresh

    again = artifact.load(tmp_path, build, "key")
    inputs = Noise().prepare(Noise().split("train").inputs)
    assert torch.equal(again.model(inputs), model(inputs))


def test_before_an_unfolded_norm_the_shift_counts_as_absorbed():
    """What a later layer gets is as if the norm's mean had been measured again."""
    reference = make(Residual, 3)
    model, names = rounded(reference, 3)
    correct_bias_(model, reference, names, context(), 40, batch_size=40)
    inputs = Noise().prepare(Noise().split("train").inputs)
    aligned = deepcopy(model)
    for name, norm in (("stem", "bn"), ("one", "bn1"), ("two", "bn2")):
        shift = output_of(aligned, name, inputs) - output_of(reference, name, inputs)
        aligned.get_submodule(norm).running_mean += shift
    means = [output_of(m, "fc", inputs) for m in (aligned, reference)]
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-4)


def test_a_norm_whose_statistics_are_kept_absorbs_nothing():
    reference = make(Residual, 3)
    model, names = rounded(reference, 3)
    own = replace(context(), batchnorm="keep")
    edit = correct_bias_(model, reference, names, own, 40, batch_size=40)
    bare = [name for name in names if reference.get_submodule(name).bias is None]
    assert bare and edit == {"kind": "bias", "layers": bare}
    inputs = Noise().prepare(Noise().split("train").inputs)
    for name in names:
        means = [output_of(m, name, inputs) for m in (model, reference)]
        torch.testing.assert_close(*means, rtol=1e-4, atol=1e-4)


def test_a_shared_layer_is_left_alone_and_nan_is_refused():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.conv(self.conv(x).relu()).mean((2, 3)))

    torch.manual_seed(0)
    reference = Shared().eval()
    model, names = rounded(reference, 2)
    bias = model.conv.bias.clone()
    correct_bias_(model, reference, names, context(), 40)
    assert torch.equal(model.conv.bias, bias)
    assert not torch.equal(model.fc.bias, reference.fc.bias)
    reference.fc.bias.data[0] = float("nan")
    with pytest.raises(CheckFailedError, match="bias correction of fc: the shift is not finite"):
        correct_bias_(model, reference, names, context(), 40)


def one_rank(rank: int):
    reference = folded()
    model, names = rounded(reference, 3)
    correct_bias_(model, reference, names, context(Noise(39)), 39, batch_size=64)  # 20 and 19
    return {name: model.get_submodule(name).bias.tolist() for name in names}


@pytest.mark.long
def test_two_ranks_hold_the_same_biases_the_mean_of_their_shards(tmp_path):
    results = on_two_ranks(one_rank, tmp_path)
    assert results[0] == results[1]
    reference = folded()
    model, names = rounded(reference, 3)
    inputs = Noise(39).prepare(Noise(39).split("train").inputs)
    inputs = inputs[torch.randperm(39, generator=torch.Generator().manual_seed(5))]
    slow = [corrected_slowly(model, reference, names, part) for part in (inputs[::2], inputs[1::2])]
    for name in names:
        first, second = (m.get_submodule(name).bias for m in slow)
        expected = (20 * first + 19 * second) / 39
        torch.testing.assert_close(torch.tensor(results[0][name]), expected, rtol=1e-4, atol=1e-5)


def test_the_mean_error_of_a_depthwise_net_falls():
    data = digits()
    reference = trained()
    images = data.prepare(data.split("validation").inputs)
    fold_batchnorm_(reference, images[:2])
    model, names = rounded(reference, 4)
    better = deepcopy(model)
    assert correct_bias_(better, reference, names, context(data), 512) is None
    with torch.no_grad():
        exact, plain, after = (m(images) for m in (reference, model, better))
    shift = [float((y - exact).mean(0).square().mean()) for y in (plain, after)]
    error = [float((y - exact).square().mean()) for y in (plain, after)]
    targets = data.split("validation").targets
    correct = [float((y.argmax(1) == targets).float().mean()) for y in (exact, plain, after)]
    assert shift[1] < 0.1 * shift[0]
    assert error[1] < error[0]
    lost, won_back = correct[0] - correct[1], correct[2] - correct[1]
    assert lost > 0.05
    assert won_back > 0.7 * lost
