"""BatchNorm folded before quantization: the same function, only where it may be, kept on disk."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core import artifact, edits
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.grid import Grid
from compressbench.core.types import Artifact, Context, DataSpec, Runtime, Split
from compressbench.export.onnx import export_onnx
from compressbench.quantization.grids.weights import quantize_weights_
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.preparation.folding import (
    check_scales_survive,
    fold_batchnorm_,
    own_norms,
)
from compressbench.quantization.rounding.nearest import Nearest
from tests.quantization.preparation_zoo import EXPECTED, SHAPE, Residual, make, noise

CONTEXT = Context(None, Runtime(), 0, Path(), None)  # of which nothing is used
EXAMPLE = torch.zeros(2, *SHAPE)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", EXPECTED)
def test_the_folded_model_is_the_same_function(kind, seed):
    model = make(kind, seed)
    before = model(noise())
    edit = fold_batchnorm_(model, EXAMPLE)
    assert dict(edit["pairs"]) == EXPECTED[kind][0]
    for layer, norm in edit["pairs"]:
        assert type(model.get_submodule(norm)) is nn.Identity
        assert model.get_parameter(f"{layer}.bias").requires_grad
    torch.testing.assert_close(model(noise()), before, rtol=1e-4, atol=1e-5)
    assert fold_batchnorm_(model, EXAMPLE) is None


def test_against_the_formula_channel_by_channel():
    model = make(Residual, 5)
    old, norm = deepcopy(model.one), model.bn1
    fold_batchnorm_(model, EXAMPLE)
    for channel in range(9):
        sigma = (norm.running_var[channel] + norm.eps) ** 0.5
        factor = norm.weight[channel] / sigma
        torch.testing.assert_close(model.one.weight[channel], old.weight[channel] * factor)
        bias = norm.bias[channel] + factor * (old.bias[channel] - norm.running_mean[channel])
        torch.testing.assert_close(model.one.bias[channel], bias)


class Twice(nn.Module):
    """One convolution before two norms, one norm after two convolutions, two that share weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.a, self.b, self.shared = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.c, self.bn_c = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.d, self.bn_d = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.d.weight = self.c.weight

    def forward(self, x):
        x = self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))
        x = self.shared(self.b(self.shared(self.a(x))))
        return self.bn_d(self.d(self.bn_c(self.c(x))))


class Reads(nn.Module):
    """Norms of which the model reads something else, or which it does not call by its own name."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
        self.plain = [self.norms[2]]

    def forward(self, x):
        x = self.norms[0](self.convs[0](x)) * self.norms[0].weight.sum()
        x = self.norms[1](self.convs[1](x)) + self.norms[1].num_features
        x = self.plain[0](self.convs[2](x))
        x = self.convs[3](x)
        return self.norms[3](x) if isinstance(self.norms[3], nn.BatchNorm2d) else x


class Standardized(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Bare(nn.Conv2d):
    """Its forward pass knows no bias."""

    def forward(self, x):
        return F.conv2d(x, self.weight)


class Odd(nn.Module):
    """Layers whose weight or bias is not what the convolution gets; statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = Standardized(3, 3, 1), nn.BatchNorm2d(3)
        self.b, self.bn_b = Bare(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.c, self.bn_c = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.d, self.bn_d = (
            nn.utils.parametrizations.weight_norm(nn.Linear(9, 7)),
            nn.BatchNorm1d(3),
        )
        self.e, self.bn_e = nn.Linear(7, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        x = self.bn_c(self.c(self.bn_b(self.b(self.bn_a(self.a(x))))))
        x = self.bn_d(self.d(x.mean(2)))  # [B, 3, 7]
        return self.bn_e(self.e(x)).flatten(1)  # normalizes axis 1, not the layer's outputs


@pytest.mark.parametrize("kind", [Twice, Reads, Odd])
def test_what_cannot_be_folded_stays_as_it_is(kind):
    model = make(kind, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fold_batchnorm_(model, EXAMPLE) is None
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(isinstance(m, nn.Identity) for m in model.modules())


def test_an_unseen_use_of_the_output_is_caught():
    class Compares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return self.bn(x) * (x > 0).sum().item()  # integers are not followed

    with pytest.raises(CheckFailedError, match="folding BatchNorm changed the model's outputs by"):
        fold_batchnorm_(make(Compares, 0), EXAMPLE)


class Noise:
    spec = DataSpec("noise", SHAPE, tuple("abcd"), (0.0,) * 3, (1.0,) * 3)

    def split(self, name):
        inputs = torch.randint(0, 256, (8, *SHAPE), generator=torch.Generator().manual_seed(2))
        return Split(inputs.to(torch.uint8), torch.arange(8) % 4)

    def prepare(self, inputs):
        return inputs.float() / 128 - 1


def folded(seed: int = 0) -> Artifact:
    model = make(Residual, seed)
    mask = torch.rand(model.one.weight.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    edits.set_mask_(model.one, mask)
    done = ({"kind": "mask", "layers": ["one"]}, fold_batchnorm_(model, EXAMPLE))
    return Artifact(model, {"_target_": "Residual"}, done, frozenset({"masked"}))


def test_saved_and_loaded_it_is_the_same_and_its_masks_hold(tmp_path):
    made = folded()
    artifact.check(made)
    assert not made.model.one.weight[~made.model.one.weight_mask].any()
    artifact.save(made, tmp_path)
    again = artifact.load(tmp_path, lambda config: Residual(), "key")
    assert torch.equal(again.model(noise()), made.model(noise()))
    assert again.edits == made.edits
    assert artifact.digest(again) == artifact.digest(made)


def test_the_exported_file_computes_the_same_and_keeps_one_scale_per_tensor(tmp_path):
    made = folded()
    grids = {name: Grid(8, "tensor") for name in ("stem", "one", "two", "fc")}
    edit = quantize_weights_(made.model, grids, Nearest(MinMax()), CONTEXT)
    made = replace(made, edits=(*made.edits, edit))
    export_onnx(made, Noise(), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"input": noise().numpy()})
    np.testing.assert_allclose(found, made.model(noise()).detach().numpy(), rtol=1e-4, atol=1e-4)
    floats = [
        int(np.prod(tensor.dims))
        for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    ]
    biases = sum(p.numel() for p in made.model.parameters() if p.ndim == 1)
    assert sum(floats) == biases + len(grids)


def test_powers_of_two_need_folding_and_scales_per_tensor_get_a_warning():
    model = make(Residual, 0)
    names = ["stem", "one", "two", "fc"]
    powers = {name: Grid(8, power_of_two=True) for name in names}
    tensors = {name: Grid(8, "tensor") for name in names}
    with pytest.raises(UserError, match="the scales of stem by BatchNorm bn; set fold_batchnorm"):
        check_scales_survive(model, powers, EXAMPLE)
    (warning,) = check_scales_survive(model, tensors, EXAMPLE)
    assert "into 3 layers" in warning
    assert check_scales_survive(model, {"fc": powers["fc"], "one": Grid(4)}, EXAMPLE) == ()
    fold_batchnorm_(model, EXAMPLE)
    assert own_norms(model, EXAMPLE) == {}
    assert check_scales_survive(model, powers | {"one": tensors["one"]}, EXAMPLE) == ()
