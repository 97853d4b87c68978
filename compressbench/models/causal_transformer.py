"""Transformer decoder for language models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.validation import check_integer, check_share


class CausalTransformer(nn.Module):
    """Pre-norm transformer decoder: token ids int64 [B, L] -> scores of the next token [B, L, V].

    Token and position embeddings, `depth` blocks of self-attention to what came before and a
    feed-forward layer (Radford et al. 2019, "Language models are unsupervised multitask learners"),
    LayerNorm, a linear layer.

    Args:
        input_shape: (L,), the number of tokens per text.
        vocabulary: V, number of token ids.
        width: size of the embeddings, divisible by `heads`.
        depth: number of blocks.
        heads: attention heads per block.
        expansion: width of the feed-forward layer divided by `width`.
        dropout: probability in [0, 1), applied to the embeddings and to the output of each
            sublayer.
    """

    places: Tensor
    later: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        vocabulary: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "depth": depth, "heads": heads, "expansion": expansion}
        for name, value in sizes.items():
            check_integer(name, value, 1)
        check_share("dropout", dropout)
        if width % heads:
            raise UserError(f"width must be a multiple of heads={heads}, got {width}")
        (length,) = input_shape
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            [_Block(width, heads, expansion, dropout) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("places", torch.arange(length), persistent=False)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        self.register_buffer("later", later, persistent=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        features = self.dropout(self.tokens(ids) + self.positions(self.places))
        for block in self.blocks:
            features = block(features, self.later)
        scores: Tensor = self.head(self.norm(features))
        return scores


class _Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), for x [B, L, width]."""

    def __init__(self, width: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, later: Tensor) -> Tensor:
        features = features + self.dropout(self._attention(self.norm1(features), later))
        hidden = F.gelu(self.up(self.norm2(features)))
        result: Tensor = features + self.dropout(self.down(hidden))
        return result

    def _attention(self, features: Tensor, later: Tensor) -> Tensor:
        query, key, value = (
            layer(features).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        mixed = scores.masked_fill(later, -torch.inf).softmax(3) @ value
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result
