"""Learning from features of a layer that a training step may skip."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from compressbench.models.small_cnn import SmallCnn
from compressbench.training.losses.fitnets import FitNets
from compressbench.training.teaching.objective import lesson
from tests.training.test_objective import ONCE, ROWS, cnn, context


class SkipsItsBlock(SmallCnn):
    """Calls its second block in every other batch of training only."""

    calls = 0

    def forward(self, images):
        self.calls += self.training
        if not self.training or self.calls % 2:
            return super().forward(images)
        block = self.blocks[1]
        self.blocks[1] = self.shortcut
        try:
            return super().forward(images)
        finally:
            self.blocks[1] = block


def test_a_layer_that_was_skipped_is_left_out_of_the_loss_of_that_batch(tmp_path):
    torch.manual_seed(0)
    student = SkipsItsBlock([1, 8, 8], 10, width=4)
    student.shortcut = nn.Identity()
    teacher, ctx = cnn(8, 1), context(tmp_path)
    loss = FitNets(layers={"blocks.1": "blocks.1"}, weight=3.0)
    images, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    with lesson(student, {"teacher": teacher}, loss, ONCE, ctx) as taught:
        student.train()
        for called in (True, False, True):
            value, logits = taught(student, images, labels, ROWS)
            terms = taught.terms
            assert set(terms) == {"labels", "fitnets"}
            assert bool(terms["fitnets"] > 0) == called
            assert torch.isclose(value, F.cross_entropy(logits, labels) + terms["fitnets"])
            value.backward()
