"""Weight sharing: replaces the weights of a layer by the values of a codebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from compressbench.core.edits import set_codebook_
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.grid import Grid
from compressbench.core.layers import weight_owners
from compressbench.core.types import (
    QUANTIZED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    Context,
    DataSpec,
    Edit,
    Outcome,
)
from compressbench.quantization.grids.scheme import Scheme
from compressbench.quantization.grids.weights import quantized
from compressbench.quantization.rounding.codebook import codes_of, fit_codebook
from compressbench.training.batchnorm import BatchNormOptions

_RULE = {"layers", "type", "bits"}


@dataclass(frozen=True)
class Codebook(BatchNormOptions):
    """Replace every weight by the nearest of 2**bits values, which k-means finds for each layer.

    Han et al. 2016 (arXiv:1510.00149), without finetuning of the values. They are denser where
    weights are denser than on an integer grid, but integer kernels cannot compute with them, and
    activations stay in float. `bits` in [2, 8]; `rules` and `widths` change it for some layers,
    as in `Scheme`. Zero weights stay zero. `batchnorm` and `batchnorm_images` are those
    of `BatchNormOptions`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset({WEIGHT_QUANTIZED})
    destroys: ClassVar[frozenset[str]] = QUANTIZED

    bits: int = 4
    rules: Sequence[Mapping[str, Any]] | None = None
    widths: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.check_batchnorm()
        Scheme(Grid(self.bits), self.rules, self.widths)
        for number, rule in enumerate(self.rules or ()):
            other = sorted(set(rule) - _RULE)
            if other:
                raise UserError(f"rules[{number}]: {other[0]} does not apply to a codebook")

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject rules that match no layer, and models without one, before the recipe runs."""
        _check_found(self._bits(model, spec)[0])

    def passes(self, train_images: int) -> tuple[int, int]:
        return 0, self.batchnorm_passes(train_images)

    def _bits(self, model: nn.Module, spec: DataSpec) -> tuple[dict[str, int], dict[str, str]]:
        grids, reasons = Scheme(Grid(self.bits), self.rules, self.widths).grids(model, spec)
        return {name: grid.bits for name, grid in grids.items()}, reasons

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        bits, reasons = self._bits(model, context.data.spec)
        _check_found(bits)
        edit = share_weights_(model, bits)
        self.update_batchnorm_(model, start.model, context)
        texts = {name: f"codebook of {1 << width}" for name, width in bits.items()}
        return Outcome(start.changed(model, [edit], self.adds), quantized(model, texts, reasons))


def _check_found(bits: Mapping[str, int]) -> None:
    if not bits:
        raise UserError("codebook found no convolution or linear layer")


def share_weights_(model: nn.Module, bits: Mapping[str, int]) -> Edit:
    """Replace the weights of the layers in `bits` by codebook values; tied weights share one."""
    books: dict[str, torch.Tensor] = {}
    for name, owner in weight_owners(model, bits).items():
        layer, width = model.get_submodule(name), bits[name]
        weight = layer.get_parameter("weight")
        if not bool(torch.isfinite(weight).all()):
            raise CheckFailedError(f"{name}.weight holds NaN or infinity before codebook")
        if name == owner:
            books[name] = fit_codebook(weight, width)
        book = books[owner]
        if len(book) != 1 << width:
            raise UserError(f"{name}: {width} bits, but another layer with the same weight has "
                            f"{len(book).bit_length() - 1}")  # fmt: skip
        with torch.no_grad():
            weight.copy_(book[codes_of(weight, book)])
        set_codebook_(layer, book.clone())
    return {"kind": "codebook", "layers": dict(bits)}
