"""Texts as ids of tokens, by a tokenizer that is trained on the texts themselves."""

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
    """What makes the ids; another version may make others. UserError where it is not installed."""
    return f"tokenizers {_tokenizers().__version__}"


def _tokenizers() -> Any:
    return extra("tokenizers", "text")


def train_tokenizer(texts: Sequence[str], vocabulary: int, max_tokens: int, lowercase: bool) -> str:
    """The tokenizer.json of byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909)
    with at most `vocabulary` tokens, trained on `texts`.

    It cuts a text to `max_tokens` ids and pads a shorter one with `PAD`. Unicode is normalised
    (NFKC), a backslash is a space, and letters are small if `lowercase`. Every text has ids, since
    every byte has one. The same texts give the same tokenizer; word pieces would not: their
    trainer breaks ties by the order of a hash table.
    """
    tokenizers = _tokenizers()
    normalizers, byte_level = tokenizers.normalizers, tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    small = [normalizers.Lowercase()] if lowercase else []
    steps = [normalizers.NFKC(), *small, normalizers.Replace("\\", " ")]
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
    made: str = tokenizer.to_str()
    return made


def size(tokenizer: str) -> int:
    """Tokens in the vocabulary of a tokenizer.json."""
    found: int = _tokenizers().Tokenizer.from_str(tokenizer).get_vocab_size()
    return found


def encode(tokenizer: str, texts: Sequence[str]) -> Tensor:
    """Ids of `texts` by a tokenizer.json, int16 [N, L], or int32 where int16 does not hold them."""
    made = _tokenizers().Tokenizer.from_str(tokenizer)
    narrow = made.get_vocab_size() <= torch.iinfo(torch.int16).max + 1
    ids = [encoding.ids for encoding in made.encode_batch(texts)]
    return torch.tensor(ids, dtype=torch.int16 if narrow else torch.int32)


def drop(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`MASK` in the place of each id that is no padding, with probability `share` in [0, 1).

    The draws come from `generator`'s own device, so that every device drops alike.
    """
    if share == 0:
        return ids
    drawn = torch.rand(ids.shape, generator=generator, device=generator.device).to(ids.device)
    return ids.masked_fill((drawn < share) & (ids != PAD), MASK)
