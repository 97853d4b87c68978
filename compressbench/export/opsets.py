"""ONNX opsets: the integer types each added, and the oldest runtimes that support them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compressbench.core.validation import check_integer

OLDEST, NATIVE, PLAIN, INT4, NEWEST = 17, 18, 20, 21, 25  # PyTorch's exporter writes 18 and above
SINCE = {2: NEWEST, 4: INT4, 8: OLDEST}  # bits of a stored integer -> the opset that added the type
IR_VERSION = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 25: 13}
# The oldest versions found to run files of every kind of grid and activation; none before 1.15 was
# tested.
MIN_ONNXRUNTIME = {17: "1.15", 18: "1.15", 19: "1.16", 20: "1.17", 21: "1.23", 25: "1.32"}


def check_opset(opset: Any) -> None:
    """Raise UserError unless `opset` is a supported integer."""
    check_integer("opset", opset, OLDEST, NEWEST)


def stored_width(bits: int, opset: int) -> int:
    """The narrowest integer width (2, 4 or 8) that holds `bits` and that `opset` supports."""
    return min(width for width, since in SINCE.items() if width >= bits and opset >= since)


def declared_opset(bits: Iterable[int], opset: int) -> int:
    """The opset that a file declares: the lowest that its weights allow, for older runtimes.

    `bits` are the widths of its weights, `opset` is the newest that the target runtime supports.
    """
    narrowest = min((stored_width(b, opset) for b in bits), default=8)
    return max(SINCE[narrowest], min(opset, PLAIN))
