"""Trials of other weights: the same as whole passes of changed copies, from fewer layers."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.analysis import weight_trials
from compressbench.analysis.probe import probe_of
from compressbench.analysis.weight_trials import costs, totals
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Context, Runtime
from tests.analysis.remembered import Remembered
from tests.analysis.test_sensitivities import Stripes


class Branches(nn.Module):
    """Works in place, calls one layer twice, adds what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 5, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        y = self.twice(x)
        y += x
        x += self.twice(F.relu(y))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Borrowed(nn.Module):
    """One layer's weight is used by a function before the layer itself is called; two are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.borrowed = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied, self.fc = nn.Linear(6, 6), nn.Linear(6, 3)
        self.tied.weight = self.first.weight

    def forward(self, x):
        x = torch.tanh(F.linear(self.first(x), self.borrowed.weight * 2.0))
        return self.fc(self.borrowed(torch.tanh(self.tied(x))))


class Attention(nn.Module):
    """Layers that a fused function computes with, and that are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(8, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.block(self.into(x)).mean(1))


ZOO = {
    Branches: ((3, 7, 5), ["stem", "twice", "last", "fc"]),
    Borrowed: ((6,), ["first", "borrowed", "tied", "fc"]),
    Attention: ((5, 8), ["into", "block.self_attn.out_proj", "block.linear1", "block.linear2"]),
}


def context() -> Context:
    return Context(Stripes(), Runtime(), 0, Path("unused"), lambda config: None)


def changed(probe: nn.Module, *layers: str) -> dict[str, torch.Tensor]:
    return {n: probe.get_parameter(f"{n}.weight").detach().flip(0) * 0.5 for n in layers}


def made(kind: type[nn.Module]):
    torch.manual_seed(len(kind.__name__))
    shape, layers = ZOO[kind]
    probe = probe_of(kind(), torch.device("cpu"))
    return probe, [torch.randn(n, *shape) for n in (9, 4)], layers


def whole(probe: nn.Module, weights: dict, inputs: torch.Tensor) -> torch.Tensor:
    copy = deepcopy(probe)
    with torch.no_grad():
        for layer, weight in weights.items():
            copy.get_parameter(f"{layer}.weight").copy_(weight)
        return copy(inputs)


@pytest.mark.parametrize("kept", [0, 1000, weight_trials.KEPT])
@pytest.mark.parametrize("kind", ZOO)
def test_trials_are_whole_passes_with_other_weights(kind, kept, monkeypatch):
    monkeypatch.setattr(weight_trials, "KEPT", kept)
    probe, batches, layers = made(kind)
    sets = [(), *((name,) for name in layers), (layers[1], layers[3]), (layers[3], layers[0]), ()]
    seen: dict[int, list] = {0: [], 1: []}

    def look(own, outputs, batch):
        seen[batch].append(outputs)
        return own.double().sum(), (outputs.double() - own.double()).square().sum(), len(outputs)

    found = totals(probe, batches, [lambda s=s: changed(probe, *s) for s in sets], look, context())
    for position, names in enumerate(sets):
        slow = [whole(probe, changed(probe, *names), inputs) for inputs in batches]
        for batch, outputs in enumerate(slow):
            torch.testing.assert_close(seen[batch][position], outputs, rtol=1e-4, atol=1e-5)
        own = [whole(probe, {}, inputs) for inputs in batches]
        distance = sum(
            float((a - b).double().square().sum()) for a, b in zip(slow, own, strict=True)
        )
        sums = [float(sum(o.double().sum() for o in own)), distance, 13]
        assert found[position] == pytest.approx(sums, rel=1e-3, abs=1e-4)
        assert (found[position][1] > 1e-3) == bool(names), "the weights of the trial were used"


def test_costs_are_the_divergence_of_an_image():
    probe, batches, layers = made(Branches)
    (found,) = costs(probe, batches, [lambda: changed(probe, layers[2])], context())
    nats = [
        F.kl_div(whole(probe, changed(probe, layers[2]), x).double().log_softmax(1),
                 whole(probe, {}, x).double().softmax(1), reduction="sum")
        for x in batches
    ]  # fmt: skip
    assert found == pytest.approx(float(sum(nats)) / 13, rel=1e-4)
    assert costs(probe, batches, [], context()) == []


def test_what_is_asked_again_is_not_measured_again():
    """Any other weight, input or trial is another question; the same ones in a copy are not."""
    probe, batches, layers = made(Branches)
    known = Remembered()
    here = replace(context(), recall=known.recall)

    def ask(probe=probe, batches=batches, names=layers[:2]) -> list[float]:
        fresh = deepcopy(probe)  # statistics of BatchNorm follow what was seen
        return costs(fresh, batches, [lambda n=n: changed(probe, n) for n in names], here)

    found = ask()
    assert ask(batches=[x.clone() for x in batches]) == found
    assert len(known) == 1
    other, shifted = deepcopy(probe), [batches[0], batches[1] + 1e-3]
    with torch.no_grad():
        other.fc.bias[0] += 1e-2
    strided = deepcopy(probe)
    strided.last.stride = (2, 2)  # the same tensors in another network
    for answer in (ask(other), ask(batches=shifted), ask(names=layers[1:3]), ask(strided)):
        assert answer != found
    assert len(known) == 5


def test_answers_that_are_not_finite_are_refused():
    probe, batches, layers = made(Branches)
    with torch.no_grad():
        probe.fc.bias[0] = float("nan")
    with pytest.raises(CheckFailedError, match="not finite"):
        costs(probe, batches, [lambda: changed(probe, layers[0])], context())


def test_only_what_a_weight_reaches_is_computed_again(monkeypatch):
    probe, batches, _ = made(Branches)
    calls: Counter[int] = Counter()
    convolve = F.conv2d

    def counted(*args, **kwargs):
        calls["conv"] += 1
        return convolve(*args, **kwargs)

    monkeypatch.setattr("torch.nn.modules.conv.F.conv2d", counted)

    def taken(*sets) -> int:
        calls.clear()
        totals(probe, batches[:1], [lambda s=s: changed(probe, *s) for s in sets],
               lambda own, outputs, batch: [1.0], context())  # fmt: skip
        return calls["conv"] - 8  # of the pass that is kept, and of a look at its layout

    assert taken(()) == taken(("fc",)) == 1, "y += x: that output was changed in place"
    assert taken(("last",)) == 2
    assert taken(("twice",)) == 3
    assert taken(("stem",)) == taken(("fc", "stem")) == 4
    assert taken(("last",), ("last",), ("fc",)) == 5


def test_the_probe_is_left_as_it_was():
    probe, batches, layers = made(Branches)
    before = {name: value.clone() for name, value in probe.named_parameters()}
    failing = [lambda: changed(probe, layers[0]), lambda: {"stem": torch.zeros(1, 2)}]
    with pytest.raises(RuntimeError):
        costs(probe, batches, failing, context())
    assert all(torch.equal(value, before[name]) for name, value in probe.named_parameters())
    assert not any("forward" in vars(layer) for layer in probe.modules())
    assert not probe._forward_pre_hooks
