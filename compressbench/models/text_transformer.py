"""Transformer encoder for text classification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.validation import check_integer, check_share


class TextTransformer(nn.Module):
    """Pre-norm transformer encoder: token ids int64 [B, L] -> logits [B, num_classes].

    Token and position embeddings, `depth` blocks of self-attention and a feed-forward layer
    (Vaswani et al. 2017, arXiv:1706.03762) with LayerNorm before each (Xiong et al. 2020,
    arXiv:2002.04745), the mean over tokens, LayerNorm, and a linear classifier. Padding is excluded
    from attention and mean, so the amount of padding does not matter; an empty text counts as one
    token `pad`.

    Args:
        input_shape: (L,), the number of tokens per text.
        num_classes: number of logits.
        vocabulary: number of token ids.
        pad: id of padding.
        width: size of the embeddings, divisible by `heads`.
        depth: number of blocks.
        heads: attention heads per block.
        expansion: width of the feed-forward layer divided by `width`.
        dropout: probability in [0, 1), applied to the embeddings and to the output of each
            sublayer.
    """

    first: Tensor
    places: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        vocabulary: int,
        pad: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        expansion: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_integer("width", width, 1, 2**16)
        check_integer("depth", depth, 1, 100)
        check_integer("heads", heads, 1, 2**10)
        check_integer("expansion", expansion, 1, 100)
        check_share("dropout", dropout)
        if width % heads:
            raise UserError(f"width must be a multiple of heads={heads}, got {width}")
        (length,) = input_shape
        self.pad = pad
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential()
        for _ in range(depth):
            self.blocks.append(Block(width, heads, expansion, dropout))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        self.register_buffer("places", torch.arange(length), persistent=False)
        self.register_buffer("first", torch.arange(length) == 0, persistent=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        kept = (ids != self.pad) | self.first
        features = self.dropout(self.tokens(ids) + self.positions(self.places))
        for block in self.blocks:
            features = block(features, kept)
        texts = features.masked_fill(~kept.unsqueeze(2), 0.0).sum(1)
        logits: Tensor = self.classifier(self.norm(texts / kept.sum(1, keepdim=True)))
        return logits


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), for x [B, L, width]."""

    def __init__(self, width: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, kept: Tensor) -> Tensor:
        features = features + self.dropout(self.attention(self.norm1(features), kept))
        hidden = F.gelu(self.up(self.norm2(features)))
        result: Tensor = features + self.dropout(self.down(hidden))
        return result


class Attention(nn.Module):
    """Multi-head attention of every token to the tokens `kept` (bool [B, L]).

    Written without torch's fused attention, so that an integer runtime can compute both matrix
    products in integers.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, features: Tensor, kept: Tensor) -> Tensor:
        query, key, value = (
            layer(features).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        scores = scores.masked_fill(~kept[:, None, None, :], -torch.inf)
        mixed = scores.softmax(3) @ value
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result
