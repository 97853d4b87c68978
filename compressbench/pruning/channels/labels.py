"""Labels of channels: a union-find over channels that can only be removed together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]

FREE = 0  # the label of values that impose nothing: they take the size of what they meet


class Labels:
    """Classes of labels (integers), each removable or fixed for a reason.

    A class is `raw` while it has labels of parameters and buffers only, and none of a layer's
    channels. Fixed classes are not merged: each keeps the reason for which it was fixed first.
    """

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, np.int64)
        self._reason: Ids = np.zeros(1, np.int64)  # position in `_texts`; 0: removable
        self._raw = np.ones(1, np.bool_)
        self._texts = [""]
        self._constants: dict[str, int] = {}

    def new(self, count: int, raw: bool = False) -> Ids:
        """`count` labels, each in a class of its own."""
        start = len(self._parent)
        fresh = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, fresh])
        self._reason = np.concatenate([self._reason, np.zeros(count, np.int64)])
        self._raw = np.concatenate([self._raw, np.full(count, raw)])
        return fresh

    def fixed(self, reason: str) -> int:
        """The label of values that cannot be removed, for `reason`."""
        if reason not in self._constants:
            (label,) = self.new(1)
            self._constants[reason] = int(label)
            self._reason[label] = self._code(reason)
        return self._constants[reason]

    def find(self, labels: Any) -> Ids:
        """The representative (least label) of each label's class."""
        ids = _ids(labels)
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def classes(self, labels: Any) -> Ids:
        """Like `find`, with -1 for all fixed classes."""
        roots = self.find(labels)
        return np.where(self._reason[roots] > 0, -1, roots)

    def unite(self, one: Any, other: Any) -> None:
        """Merge the classes of each pair; the two broadcast. FREE imposes nothing."""
        first, second = np.broadcast_arrays(self.find(one), self.find(other))
        count = len(self._parent)
        pairs = np.stack(np.divmod(np.unique(first.ravel() * count + second.ravel()), count))
        while True:
            low, high = np.sort(self.find(pairs), axis=0)
            apart = (low != high) & (low != FREE)
            low, high = low[apart], high[apart]
            held_low, held_high = self._reason[low] > 0, self._reason[high] > 0
            spread = held_low != held_high
            if spread.any():
                self._spread(low[spread], high[spread])
                continue
            low, high = low[~held_low], high[~held_low]
            if not len(low):
                return
            np.minimum.at(self._parent, high, low)
            np.logical_and.at(self._raw, self.find(high), self._raw[high])

    def _spread(self, low: Ids, high: Ids) -> None:
        codes = np.maximum(self._reason[low], self._reason[high])
        for ids in (low, high):
            self._reason[ids] = np.where(self._reason[ids] > 0, self._reason[ids], codes)

    def fix(self, labels: Any, reason: str) -> None:
        """Fix the classes of `labels`, unless they are fixed already."""
        roots = np.unique(self.find(labels))
        roots = roots[(roots != FREE) & (self._reason[roots] == 0)]
        self._reason[roots] = self._code(reason)

    def reasons(self, labels: Any) -> list[str]:
        """The reason for which each of `labels` is fixed, or ""."""
        return [self._texts[code] for code in self._reason[self.find(labels)].ravel()]

    def raw(self, labels: Any) -> bool:
        """Whether all classes are of parameters and buffers only, and none is fixed."""
        roots = np.unique(self.find(labels))
        return bool(self._raw[roots].all() and not self._reason[roots].any())

    def _code(self, reason: str) -> int:
        if reason not in self._texts:
            self._texts.append(reason)
        return self._texts.index(reason)


def _ids(labels: Any) -> Ids:
    values = labels.numpy() if isinstance(labels, Tensor) else labels
    return np.asarray(values, np.int64)
