"""Codebooks of weights: k-means against scikit-learn's, and what it is for."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans

from compressbench.core.grid import Grid
from compressbench.core.types import Context, Runtime
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.rounding.codebook import codes_of, fit_codebook
from compressbench.quantization.rounding.nearest import Nearest


def heavy_tailed(*shape: int) -> torch.Tensor:
    torch.manual_seed(sum(shape))
    return torch.distributions.StudentT(3.0).sample(shape) * 0.05


def error(weight: torch.Tensor, rounded: torch.Tensor) -> float:
    return float((weight.detach() - rounded).double().square().sum())


@pytest.mark.parametrize(("shape", "bits"), [((7, 3, 3, 3), 2), ((11, 13), 3), ((5, 29), 4)])
def test_scikit_learn_finds_nothing_to_improve_and_nothing_much_better(shape, bits):
    weight = heavy_tailed(*shape)
    values = weight.double().numpy().reshape(-1, 1)
    book = fit_codebook(weight, bits)
    ours = error(weight, book[codes_of(weight, book)])
    used = book[codes_of(weight, book).unique()].double().numpy().reshape(-1, 1)
    lloyd = KMeans(len(used), init=used, n_init=1, max_iter=1000, tol=0.0).fit(values)
    assert lloyd.inertia_ == pytest.approx(ours, rel=1e-5)  # a fixed point of the algorithm
    best = KMeans(1 << bits, n_init=20, random_state=0).fit(values)
    assert ours <= 1.0001 * best.inertia_  # exact


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_the_nearest_values(bits):
    weight = heavy_tailed(9, 5, 3)
    book = fit_codebook(weight, bits)
    distances = (weight.double()[..., None] - book.double()).abs()
    nearest = distances.gather(-1, codes_of(weight, book)[..., None])[..., 0]
    assert torch.equal(nearest, distances.min(-1).values)
    assert len(book) == 1 << bits and bool((book.diff() >= 0).all())


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_each_value_is_the_mean_of_its_weights(bits):
    weight = heavy_tailed(17, 31)
    book = fit_codebook(weight, bits)
    codes = codes_of(weight, book)
    for code in codes.unique():
        assert float(book[code]) == pytest.approx(float(weight[codes == code].double().mean()))


def test_zeros_stay_zero_and_the_others_share_the_rest():
    weight = heavy_tailed(23, 19)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.7] = 0.0
    book = fit_codebook(weight, 3)
    rounded = book[codes_of(weight, book)]
    assert bool((rounded[weight == 0] == 0).all()) and len(rounded.unique()) == 8


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_on_heavy_tails_a_codebook_is_nearer_than_any_even_grid_of_one_scale(bits):
    """Han et al. 2016, section 3: shared values crowd where the weights do."""
    layer = torch.nn.Linear(41, 37)
    layer.weight.data = heavy_tailed(37, 41)
    model = torch.nn.ModuleDict({"fc": layer})
    grid = Grid(bits, "tensor", symmetric=False)
    context = Context(None, Runtime(), 0, None, None)
    even = Nearest(Mse())(model, {"fc": grid}, context)["fc"].weight
    book = fit_codebook(layer.weight, bits)
    shared = book[codes_of(layer.weight, book)]
    assert error(layer.weight, shared) < 0.9 * error(layer.weight, even)


def test_a_constant_weight_has_one_value():
    weight = torch.full((3, 4), 0.25)
    book = fit_codebook(weight, 4)
    assert torch.equal(book[codes_of(weight, book)], weight)
