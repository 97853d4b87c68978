"""A model without a layer that can be quantized is refused when it is planned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from compressbench.quantization.codebook import Codebook
from tests.quantization.quantized_net import Noise, stage


@pytest.mark.parametrize("made", [stage(), Codebook(4)], ids=["quantize", "codebook"])
def test_a_model_without_layers_is_refused_when_planned(made):
    class Matrix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.Parameter(torch.randn(128, 3))

        def forward(self, x):
            return x.flatten(1) @ self.factors

    with pytest.raises(UserError, match="found no") as caught:
        made.check_model(Matrix(), Noise().spec)
    assert ": :" not in str(caught.value)
