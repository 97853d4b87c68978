"""What rounding explains depends on how much a model amplifies it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Artifact
from compressbench.export.onnx import export_onnx
from compressbench.measure import figures, rounding
from compressbench.measure.agreement import NEAR_TIE, check_agreement
from compressbench.tasks.classification import CLASSIFICATION

PRUNED = 7.7  # what the pruned channels hold


class Amplifier(nn.Module):
    """Normalizes pruned channels, which are constant, and what is computed of them once more."""

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 6, 1), nn.InstanceNorm2d(6)
        self.mix, self.again = nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)
        self.off = off  # error of the mean of a pruned channel
        with torch.no_grad():
            self.conv.weight[2:] = 0
            self.conv.bias[2:] = PRUNED
            self.again.running_var.fill_(1e-2)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = torch.cat([x[:, :2], x[:, 2:] + self.off * self.norm.eps**-0.5], 1)
        return self.fc(self.again(self.mix(x)).tanh().mean((2, 3)))


class InPlace(nn.Module):
    """Views, tuples, and results that are written to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.fc = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        rows, _ = self.rnn(x[:, 0])
        masked = rows.masked_fill(rows > 0.9, -torch.inf).softmax(-1)
        masked[:, 0] = 0.5
        return self.fc(masked.relu_().mean(1).mul_(2))


@pytest.fixture
def inputs(data):
    return data.prepare(data.split("validation").inputs)


def _perturbed(model, inputs):
    with torch.inference_mode():
        return [rounding.perturbed(model, draw)(inputs) for draw in range(rounding.DRAWS)]


def _check(model, other, inputs):
    with torch.inference_mode():
        check_agreement(
            CLASSIFICATION, other(inputs), model(inputs), False, lambda: _perturbed(model, inputs)
        )


@pytest.mark.parametrize("kind", ["quadrants", "in place"])
def test_a_usual_model_amplifies_less_than_is_always_allowed(kind, exported, inputs):
    model = exported(False)[0].model if kind == "quadrants" else InPlace().eval()
    exact = model(inputs)
    allowed = NEAR_TIE[False] * (exact.amax(1) - exact.amin(1)).mean()
    for answers in _perturbed(model, inputs):
        assert 0 < (answers - exact).abs().max() < allowed / 2
    assert torch.equal(model(inputs), exact)


def test_errors_are_the_same_in_each_call(inputs):
    model = Amplifier().eval()
    assert all(map(torch.equal, _perturbed(model, inputs), _perturbed(model, inputs)))


def test_a_mean_that_is_off_by_its_last_bit_is_rounding(inputs):
    model = Amplifier().eval()
    last_bit = torch.finfo(torch.float32).eps * PRUNED
    for off in (last_bit, -last_bit):
        other = Amplifier(off).eval()
        with torch.inference_mode(), pytest.raises(CheckFailedError, match="rounding explains"):
            check_agreement(CLASSIFICATION, other(inputs), model(inputs), False)
        _check(model, other, inputs)
    with pytest.raises(CheckFailedError, match="rounding explains"):
        _check(model, Amplifier(30 * last_bit).eval(), inputs)


def test_the_file_of_such_a_model_is_taken_and_another_one_refused(data, tmp_path):
    model = Amplifier().eval()
    artifact, path = Artifact(model, {}, (), frozenset()), tmp_path / "model.onnx"
    export_onnx(artifact, data, path)
    figures.measure_model(artifact, path, path, data)
    for name in ("mix.weight", "fc.weight"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter(name)[0, 0] *= 1.3
        with pytest.raises(CheckFailedError, match="rounding explains"):
            figures.measure_model(Artifact(other, {}, (), frozenset()), path, path, data)
