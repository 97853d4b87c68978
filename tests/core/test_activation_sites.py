"""Where activations are quantized in models of many shapes, and that hooks change nothing else."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core import artifact
from compressbench.core.activation_quantizers import CHILD, SiteQuantizer, attach_
from compressbench.core.activation_sites import find_sites
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Artifact
from compressbench.quantization.observers.dynamic import Dynamic
from tests.core.activation_zoo import EXPECTED, built, images, quantized


@pytest.mark.parametrize("kind", EXPECTED)
def test_sites_are_where_an_integer_runtime_rounds(kind):
    sites = find_sites(built(kind), images())
    assert [(s["function"], s["index"], s["layer"]) for s in sites] == EXPECTED[kind]


@pytest.mark.parametrize("kind", EXPECTED)
def test_observing_changes_no_bit_and_sees_every_site(kind):
    model = built(kind)
    expected = model(images().clone())
    edit = {"kind": "activation_grid", "sites": find_sites(model, images()), "bits": 8}
    quantizers = attach_(model, edit)
    seen = []
    quantizers.observe = lambda number, values: seen.append(number)
    assert torch.equal(model(images().clone()), expected)
    assert seen == list(range(len(edit["sites"])))


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_site_counts_towards_the_output(kind):
    """Clipping everything away at any single site changes what comes out."""
    model, _ = quantized(kind)
    quantizers = model.get_submodule(CHILD)
    ranges = {}
    quantizers.observe = lambda n, values: ranges.update({n: [v.item() for v in values.aminmax()]})
    exact = model(images())
    quantizers.observe = None
    for number, grid in enumerate(quantizers):
        grid.set_range_(*ranges[number])
    fine = model(images())
    torch.testing.assert_close(fine, exact, atol=0.1, rtol=0)
    for number, grid in enumerate(quantizers):
        grid.set_range_(0.0, 1e-4)
        assert not torch.allclose(model(images()), fine, atol=1e-6, rtol=0)
        grid.set_range_(*ranges[number])


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_copy_has_quantizers_of_its_own(kind):
    model, _ = quantized(kind)
    before = model(images())
    copy = deepcopy(model)
    assert torch.equal(copy(images()), before)
    for grid in copy.get_submodule(CHILD):
        grid.set_range_(0.0, 1e-3)
    assert torch.equal(model(images()), before)
    assert not torch.equal(copy(images()), before)


@pytest.mark.parametrize("kind", EXPECTED)
def test_stored_and_loaded_gives_the_same_bits(kind, tmp_path):
    model, edit = quantized(kind)
    stored = Artifact(model, {"_target_": kind.__name__}, (edit,), frozenset())
    digest = artifact.save(stored, tmp_path)
    loaded = artifact.load(tmp_path, lambda config: kind(), "")
    assert artifact.digest(loaded) == digest
    assert torch.equal(loaded.model(images(7)), model(images(7)))


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-1.0, 3.0), (2.0, 3.0), (-4.0, -1.0)])
def test_a_grid_has_256_levels_zero_is_one_and_the_range_is_met(low, high):
    grid = SiteQuantizer(8)
    grid.set_range_(low, high)
    values = torch.linspace(min(low, 0) - 1, max(high, 0) + 1, 10_001)
    result = grid(values)
    step = (max(high, 0) - min(low, 0)) / 255
    assert len(result.unique()) == 256
    assert grid(torch.zeros(1)).item() == 0.0
    inside = (values >= low) & (values <= high)
    assert (result - values)[inside].abs().max() <= step  # half, and half for the zero point
    assert result.min() == pytest.approx(min(low, 0), abs=step)
    assert result.max() == pytest.approx(max(high, 0), abs=step)


def test_an_always_zero_site_keeps_zero_and_a_usable_scale():
    grid = SiteQuantizer(8)
    grid.set_range_(0.0, 0.0)
    assert grid.scale.item() == pytest.approx(1 / 255)
    assert not grid(torch.zeros(3)).any()


def test_a_model_that_makes_other_calls_than_when_calibrated_is_refused():
    class Fickle(nn.Module):
        skip = False

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            x = self.fc(x)
            return self.fc(x if self.skip else F.relu(x) * 2)

    model = Fickle().eval()
    edit = {"sites": find_sites(model, torch.zeros(2, 4)), "bits": 8}
    attach_(model, edit)
    model(torch.zeros(2, 4))
    model.skip = True
    with pytest.raises(CheckFailedError, match="2 activation quantizers were reached"):
        model(torch.zeros(2, 4))


def as_it_comes(values: torch.Tensor) -> torch.Tensor:
    """What ONNX DynamicQuantizeLinear and DequantizeLinear make of a tensor, in numpy."""
    x = values.numpy()
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 255)
    return torch.from_numpy(((codes - zero_point) * scale).astype(np.float32))


@pytest.mark.parametrize("kind", EXPECTED)
def test_dynamic_ranges_round_what_quantized_layers_read_and_nothing_else(kind):
    layers = [n for n, m in built(kind).named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    chosen = layers[1:]
    model, reference = built(kind), built(kind)
    edit = Dynamic().edit(model, images(), chosen)
    assert {site["layer"] for site in edit["sites"]} == set(chosen)
    before = model(images())
    attach_(model, edit)
    for name in chosen:
        reference.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs: (as_it_comes(inputs[0].detach()), *inputs[1:])
        )
    for scale in (1.0, 30.0, 0.0):
        torch.testing.assert_close(
            model(images() * scale), reference(images() * scale), atol=1e-5, rtol=1e-5
        )
    assert not torch.equal(model(images()), before)
    assert not [key for key in model.state_dict() if CHILD in key]


def test_dynamic_sites_are_found_by_the_weight_not_by_the_module():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = F.linear(input=x, weight=self.first.weight)
            return F.linear(x, self.second.weight) + F.linear(x, self.first.weight)

    model = Functional().eval()
    edit = Dynamic().edit(model, torch.zeros(2, 4), ["first"])
    assert [site["index"] for site in edit["sites"]] == [0, 2]
    x = torch.randn(3, 4)
    hidden = F.linear(as_it_comes(x), model.first.weight)
    expected = F.linear(hidden, model.second.weight) + F.linear(
        as_it_comes(hidden.detach()), model.first.weight
    )
    attach_(model, edit)
    torch.testing.assert_close(model(x), expected)


def test_values_that_are_not_float32_have_no_site():
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = self.conv(x).double()
            x = (x - x.mean(1, keepdim=True)).mul(2.0).float().relu()
            return self.fc(x.half().mean((2, 3)).float())

    sites = find_sites(Careful(), torch.randn(2, 2, 8, 8))
    assert [site["function"] for site in sites] == ["input", "conv2d", "relu"]


def test_what_is_read_as_a_small_number_has_no_site():
    """Roots, logarithms and divisors of what is rounded to zero would be zero or infinite."""

    class Small(nn.Module):
        def forward(self, x):
            root = (x.relu() * 2 + 1e-6).sqrt()
            ratio = x / (x.sigmoid() + 1e-5)
            return (root + ratio) / 3 + (x.softmax(-1) + 1e-9).log() * (1 / (x.tanh() + 2))

    functions = [site["function"] for site in find_sites(Small(), torch.randn(2, 5))]
    assert functions == [
        "input", "relu", "mul", "sigmoid", "div", "add", "div", "softmax", "tanh", "rdiv", "mul",
    ]  # fmt: skip
