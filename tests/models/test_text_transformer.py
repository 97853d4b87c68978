"""The encoder of texts against PyTorch's own, and what padding may not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from compressbench.models.text_transformer import TextTransformer

PAD = 3


def made(length=9, **options) -> TextTransformer:
    torch.manual_seed(0)
    model = TextTransformer([length], 5, 40, PAD, **{"width": 12, "heads": 3, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def ids(count=6, length=9):
    """Texts of 0 to `length` tokens, some with the padding id among them."""
    torch.manual_seed(1)
    found = torch.randint(40, (count, length))
    for row, size in enumerate(torch.linspace(0, length, count).long()):
        found[row, size:] = PAD
    return found


def reference(model: TextTransformer, inputs: torch.Tensor) -> torch.Tensor:
    """By torch.nn.TransformerEncoderLayer, text by text, without what is padding."""
    rows = []
    for text in inputs:
        places = [n for n, token in enumerate(text.tolist()) if token != PAD or n == 0]
        x = model.tokens.weight[text[places]] + model.positions.weight[places]
        for block in model.blocks:
            width, heads = x.shape[1], block.attention.heads
            layer = nn.TransformerEncoderLayer(
                width, heads, block.up.out_features, 0.0, "gelu", batch_first=True, norm_first=True
            ).eval()
            a = block.attention
            weights = {
                "self_attn.in_proj_weight": torch.cat(
                    [a.query.weight, a.key.weight, a.value.weight]),
                "self_attn.in_proj_bias": torch.cat([a.query.bias, a.key.bias, a.value.bias]),
                **{f"{ours}.{kind}": getattr(module, kind)
                   for ours, module in (("self_attn.out_proj", a.out), ("linear1", block.up),
                                        ("linear2", block.down), ("norm1", block.norm1),
                                        ("norm2", block.norm2))
                   for kind in ("weight", "bias")},
            }  # fmt: skip
            layer.load_state_dict(weights)
            x = layer(x[None])[0]
        rows.append(model.classifier(model.norm(x.mean(0))))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 3])
def test_it_equals_the_encoder_of_torch_on_the_tokens_alone(depth):
    model = made(depth=depth)
    torch.testing.assert_close(model(ids()), reference(model, ids()), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_more_padding_changes_nothing():
    short, long = made(9), made(14)
    state = short.state_dict()
    longer = {**state, "positions.weight": torch.randn(14, 12)}
    longer["positions.weight"][:9] = state["positions.weight"]
    long.load_state_dict(longer)
    padded = torch.cat([ids(), torch.full((6, 5), PAD)], 1)
    torch.testing.assert_close(short(ids()), long(padded), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_every_token_of_a_text_counts():
    model, texts = made(), ids()
    changed = texts.clone()
    changed[-1, 4] = (changed[-1, 4] + 7) % 40
    assert (model(changed)[-1] - model(texts)[-1]).abs().max() > 1e-4
    assert torch.equal(model(changed)[:-1], model(texts)[:-1])


def test_dropout_acts_in_training_only():
    model, texts = made(dropout=0.5), ids()
    assert torch.equal(model(texts), model(texts))
    model.train()
    assert not torch.equal(model(texts), model(texts))


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="width must be a multiple of heads=3, got 10"):
        made(width=10)
