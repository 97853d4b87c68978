"""Descriptions of datasets that scikit-learn ships, as bytes: text for small language models."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.types import Split, SplitName, Tokens
from compressbench.core.validation import check_integer
from compressbench.data.arrays import Arrays
from compressbench.data.partition import SPLITS
from compressbench.tasks.tokens import LanguageModel

FOLDER = "datasets/descr"
SHARES = (0.8, 0.1, 0.1)  # of the text, for training, validation, test


def descriptions(length: int = 64, metric: str = "perplexity") -> Arrays:
    """A language model on 15 descriptions in English, about 70 kB, one token per byte.

    The text is cut into windows of `length` bytes: all to learn from overlap by half, those to
    measure with do not. Training, validation and test are consecutive parts of the text.

    Args:
        length: bytes of a window, from 8 to 1024.
        metric: perplexity, bits_per_token or token_accuracy.
    """
    check_integer("dataset.length", length, 8, 1024)
    names = tuple(str(byte) for byte in range(256))
    return Arrays(
        "descriptions",
        lambda: _read(length),
        names,
        LanguageModel(),
        metric,
        tokens=Tokens(256, 0, ""),
        options={"length": length},
    )


def _read(length: int) -> dict[SplitName, Split]:
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("dataset=descriptions: scikit-learn, which has them, is not installed")
    paths = sorted((Path(package.origin).parent / FOLDER).glob("*.rst"))
    text = b"\n\n".join(path.read_bytes() for path in paths)
    every = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    sizes = [int(len(every) * share) for share in SHARES[:-1]]
    parts = torch.split(every, [*sizes, len(every) - sum(sizes)])
    return {
        name: _windows(part, length, length // 2 if name == "train" else length)
        for name, part in zip(SPLITS, parts, strict=True)
    }


def _windows(part: Tensor, length: int, step: int) -> Split:
    """Windows of ids, and the ids that follow each."""
    windows = part.unfold(0, length + 1, step).long()
    return Split(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
