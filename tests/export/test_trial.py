"""A model that cannot be exported is refused in one line with the place, the others are not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.types import DataSpec, Tokens
from compressbench.export.trial import try_export
from compressbench.models.resnet import ResNet
from compressbench.models.text_transformer import TextTransformer
from tests.export.export_zoo import ArrayData, Attention, Mobile

SPEC = DataSpec("noise", (3, 9, 7), tuple("abcde"), (), ())


class Net(nn.Module):
    """A convolution and a linear layer, with a module in between: the one that is tested."""

    def __init__(self, middle=None):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.middle = nn.Identity() if middle is None else middle

    def forward(self, x):
        return self.fc(self.middle(F.relu(self.conv(x))).mean((2, 3)))


class Branch(nn.Module):
    def forward(self, x):
        if x.mean() > 0.1:  # here
            return x * 1.5
        return x


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.view(int(x.size(0)), 8, 5, 7)  # here


class LoopOverSamples(nn.Module):
    def forward(self, x):
        return torch.stack([row * 2 for row in x])  # here


class BatchDecides(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] > 2 else x  # here


class NoOperator(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)[..., None]  # here


class SparseProduct(nn.Module):
    def forward(self, x):
        product = torch.sparse.mm(torch.eye(8).to_sparse(), x.flatten(1)[:, :8].T)  # here
        return x + product.T[:, :, None, None]


class Bfloat16Product(nn.Module):
    def forward(self, x):
        weight = torch.ones(4, 8, 1, 1, dtype=torch.bfloat16)
        narrow = F.conv2d(x.bfloat16(), weight)  # here
        return x + narrow.float().mean((1, 2, 3), keepdim=True)


class Float64Convolution(nn.Module):
    def forward(self, x):
        return F.conv2d(x.double(), torch.ones(8, 8, 1, 1, dtype=torch.float64)).float()  # here


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Squeezed(Net):
    def forward(self, x):
        return super().forward(x).squeeze()


class PairsOfSamples(nn.Module):
    def forward(self, x):
        return x.view(-1, 2, *x.shape[1:]).flatten(0, 1)  # here


class Float64Mean(nn.Module):
    def forward(self, x):
        return x.double().mean((2, 3), keepdim=True).float()


class Float64Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.randn(5, 5, dtype=torch.float64))

    def forward(self, x):
        return (x.double() @ self.turn).sin().float()


class IntegerArithmetic(nn.Module):
    def forward(self, x):
        brightest = (x.flatten(1).argmax(1) * 3 + 1) // 2 % 5
        return x + brightest.view(-1, 1, 1, 1) * torch.ones(5).long()


class Item(nn.Module):
    def forward(self, x):
        return x * x.mean().item()


class ItemDivides(nn.Module):
    def forward(self, x):
        return x / max(float(x.abs().max()), 1e-3)  # here


class Numpy(nn.Module):
    def forward(self, x):
        return x * (float(x.detach().numpy().std()) + 1)  # here


class TwoOutputs(Net):
    def forward(self, x):
        return super().forward(x), x


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(63, 6, batch_first=True, bidirectional=True), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.lstm(x.flatten(2))[0][:, -1])


REASONS = {
    Branch: "what runs depends on data",
    FixedBatch: "its batch size becomes a constant",
    LoopOverSamples: "its batch size becomes a constant",
    BatchDecides: "for a batch of 3 its traced graph computes something else",
    NoOperator: "ONNX has no operator for aten._linalg_svd",
    SparseProduct: "aten._sparse_addmm",
    Bfloat16Product: "ONNX Runtime has no Conv of bfloat16",
    Float64Convolution: "ONNX Runtime has no Conv of float64",
    ItemDivides: "what runs depends on data",
    Numpy: ".numpy() is not supported",
    PairsOfSamples: "for a batch of 1 it fails",
}


@pytest.mark.parametrize("kind", REASONS)
def test_the_reason_and_the_line_are_named(kind, capfd):
    with pytest.raises(UserError) as caught:
        try_export(Net(kind()), SPEC)
    line = str(caught.value)
    assert REASONS[kind] in line
    assert "\n" not in line
    code = re.search(r"test_trial\.py:(\d+) \((.+?)  # here\)", line)
    assert code is not None
    assert code.group(2) in Path(__file__).read_text().splitlines()[int(code.group(1)) - 1]
    assert capfd.readouterr() == ("", "")
    assert torch._C._len_torch_function_stack() == 0, "no mode stays active"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Net(Random()), "other numbers each time"),
        (Squeezed, r"for a batch of 1 it returns \[5\], must be \[1, ...\]"),
    ],
)
def test_what_would_not_be_the_model_is_refused(make, reason):
    with pytest.raises(UserError, match=reason):
        try_export(make(), SPEC)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_are_float32(kind):
    with pytest.raises(UserError, match=f"conv.weight is {str(kind)[6:]}, must be float32"):
        try_export(Net().to(kind), SPEC)


@pytest.mark.parametrize("opset", [17, 25])
@pytest.mark.parametrize("kind", [nn.Identity, Float64Mean, IntegerArithmetic])
def test_what_can_be_exported_passes_at_every_opset(kind, opset):
    model = Net(kind()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try_export(model, SPEC, opset)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "make", [lambda: Net(Float64Product()), lambda: Net(Item()), TwoOutputs, Recurrent]
)
def test_unusual_models_pass(make):
    try_export(make(), SPEC)


@pytest.mark.parametrize("kind", [Attention, Mobile])
def test_the_models_of_the_zoo_pass(kind):
    try_export(kind(), ArrayData().spec)


def test_the_built_in_models_pass():
    images = DataSpec("images", (3, 16, 16), tuple("abcde"), (), ())
    try_export(ResNet((3, 16, 16), 5, depth=8), images)
    tokens = DataSpec("texts", (12,), ("a", "b"), (), (), tokens=Tokens(50, 0, ""))
    try_export(TextTransformer((12,), 2, vocabulary=50, pad=0), tokens)
