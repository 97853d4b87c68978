"""Attention of any number of axes, with masks, exports."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.types import Artifact
from compressbench.export.onnx import export_onnx
from tests.export.export_zoo import run


class Attention(nn.Module):
    """Rows of the image as tokens, under a causal mask; `heads` of 0: three axes."""

    def __init__(self, heads: int, mask: str) -> None:
        super().__init__()
        self.heads, self.kind = heads, mask
        self.embed, self.qkv = nn.Linear(36, 12), nn.Linear(12, 36)
        self.fc = nn.Linear(12, 5)
        causal = nn.Transformer.generate_square_subsequent_mask(12)
        self.register_buffer("mask", causal == 0 if mask == "bool" else causal)

    def forward(self, x):
        x = self.embed(x.transpose(1, 2).flatten(2))
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.heads:
            q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.kind == "causal":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mask = self.mask.expand(x.shape[0], 12, 12) if self.kind == "batch" else self.mask
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.fc((y.transpose(1, 2).flatten(2) if self.heads else y).mean(1))


@pytest.mark.parametrize(
    ("heads", "mask"), [(0, "causal"), (0, "float"), (0, "bool"), (0, "batch"), (3, "float")]
)
def test_attention_with_a_mask_exports(heads, mask, data, tmp_path):
    torch.manual_seed(0)
    artifact = Artifact(Attention(heads, mask).eval(), {}, (), frozenset())
    export_onnx(artifact, data, tmp_path / "model.onnx")
    inputs = data.prepare(data.split("validation").inputs)
    with torch.no_grad():
        expected = artifact.model(inputs).numpy()
    got = run(tmp_path / "model.onnx", inputs)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.ptp(expected))
