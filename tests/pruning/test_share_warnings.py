"""Channels that go in large steps miss the asked share, and a warning says by how much."""

from __future__ import annotations

import pytest
from torch import nn

from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.prune_channels import PruneChannels
from tests.pruning.channel_zoo import Head, conv, made, run


class Halves(Head):
    """The 16 channels of `a` go in groups of 8."""

    def __init__(self) -> None:
        super().__init__(24)
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(2, 16)
        self.b = conv(16, 24)

    def forward(self, x):
        return self.head(self.b(self.norm(self.a(x)).relu()).relu())


@pytest.mark.parametrize(
    ("share", "removed", "word"),
    [(0.25, 0, "fewer"), (0.26, 8, "more"), (0.5, 8, ""), (0.625, 8, ""), (0.75, 8, "fewer")],
)
def test_steps_of_half_a_layer(share, removed, word):
    outcome = run(PruneChannels(L2(), share, round_to=1), made(Halves))
    gone = outcome.artifact.edits[-1]["removed"].get("a", {}).get("out", [])
    assert len(gone) == removed
    line = f"{word} channels than {share:.1%} were removed: {removed} of 16 of a ("
    assert [w[: len(line)] for w in outcome.warnings] == [line] * bool(word)
