"""Learned clipping of non-negative activations (PACT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.core.validation import check_not_negative
from compressbench.quantization.trained.protocols import (
    FixedSite,
    Rounding,
    pass_through,
    round_site,
)


@dataclass(frozen=True)
class Pact:
    """Train alpha of y = clip(x, 0, alpha), rounded to a grid, with dy/dalpha = [x >= alpha].

    alpha starts at the top of the calibrated range, and has the penalty decay / 2 * alpha²
    (`decay` of at least 0; Choi et al. 2018, arXiv:1805.06085, eq. 3). Activations with negative
    values, and all activations with power-of-two scales, keep their calibrated range.
    """

    decay: float = 0.0005

    def __post_init__(self) -> None:
        check_not_negative("decay", self.decay)

    def activation(
        self, scale: Tensor, zero_point: Tensor, bits: int, power_of_two: bool
    ) -> PactSite | FixedSite:
        if int(zero_point) > 0 or power_of_two:
            return FixedSite(scale, zero_point, bits)
        return PactSite(scale, bits, self.decay)


class PactSite(nn.Module):
    """Trains `alpha` float32 []; the zero point is 0."""

    zero_point: Tensor

    def __init__(self, scale: Tensor, bits: int, decay: float) -> None:
        super().__init__()
        self.bits, self.decay = bits, decay
        self.alpha = nn.Parameter(scale * (2**bits - 1))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    def scale(self) -> Tensor:
        alpha: Tensor = self.alpha.abs() / (2**self.bits - 1)
        return torch.clamp(alpha, min=torch.finfo(torch.float32).tiny)

    def forward(self, values: Tensor) -> Tensor:
        def rounding(values: Tensor, alpha: Tensor) -> Rounding:
            rounded = round_site(values, self.scale(), self.zero_point, self.bits)
            above = values >= alpha
            return Rounding(rounded, (values > 0) & ~above, above.to(values.dtype))

        return pass_through(values.float(), self.alpha.abs(), rounding).to(values.dtype)
