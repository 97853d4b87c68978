"""Trains a tokenizer and encodes texts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compressbench.core.extras import extra

PAD, MASK = 0, 1  # ids of the special tokens
SPECIAL = ("[PAD]", "[MASK]")
LEAST_VOCABULARY = 256 + len(SPECIAL)  # every byte is a token


def library() -> str:
    """Name and version of the tokenizer library, on which ids may depend.

    Raises UserError if it is not installed.
    """
    return f"tokenizers {_tokenizers().__version__}"


def _tokenizers() -> Any:
    return extra("tokenizers", "text")


def train_tokenizer(texts: Sequence[str], vocabulary: int, max_tokens: int, lowercase: bool) -> str:
    """Train byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) on `texts`.

    Returns the content of tokenizer.json, with at most `vocabulary` tokens. The tokenizer
    normalises Unicode (NFKC), replaces backslashes by spaces, converts to lower case if
    `lowercase`, and truncates or pads (`PAD`) each text to `max_tokens` ids. Every byte is a token,
    so every text can be encoded. Training is deterministic; that of WordPiece is not, since it
    breaks ties by the order of a hash table.
    """
    tokenizers = _tokenizers()
    normalizers, byte_level = tokenizers.normalizers, tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    lower = [normalizers.Lowercase()] if lowercase else []
    steps = [normalizers.NFKC(), *lower, normalizers.Replace("\\", " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=PAD, pad_token=SPECIAL[PAD], length=max_tokens)
    content: str = tokenizer.to_str()
    return content


def size(tokenizer: str) -> int:
    """The size of the vocabulary of a tokenizer.json."""
    count: int = _tokenizers().Tokenizer.from_str(tokenizer).get_vocab_size()
    return count


def encode(tokenizer: str, texts: Sequence[str]) -> Tensor:
    """Encode `texts` with a tokenizer.json: ids [N, L], int16 if they fit, otherwise int32."""
    encoder = _tokenizers().Tokenizer.from_str(tokenizer)
    narrow = encoder.get_vocab_size() <= torch.iinfo(torch.int16).max + 1
    ids = [encoding.ids for encoding in encoder.encode_batch(texts)]
    return torch.tensor(ids, dtype=torch.int16 if narrow else torch.int32)


def drop(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace each id except padding by `MASK` with probability `share` in [0, 1).

    Numbers are drawn on the generator's device, so the result does not depend on the ids' device.
    """
    if share == 0:
        return ids
    drawn = torch.rand(ids.shape, generator=generator, device=generator.device).to(ids.device)
    return ids.masked_fill((drawn < share) & (ids != PAD), MASK)
