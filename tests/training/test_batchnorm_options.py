"""The three rules for BatchNorm statistics as options of a stage, and on two ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compressbench.core.errors import UserError
from compressbench.training.batchnorm import (
    BatchNormOptions,
    reestimate_batchnorm_,
    shift_batchnorm_,
)
from tests.training.test_batchnorm_shift import context, net, statistics
from tests.two_ranks import on_two_ranks


def test_the_options():
    for options, text in (
        ({"batchnorm": "moved"}, "batchnorm must be shift, measure or keep, got 'moved'"),
        ({"batchnorm_images": 1}, "batchnorm_images must be an integer of at least 2, got 1"),
    ):
        with pytest.raises(UserError, match=text):
            BatchNormOptions(**options).check_batchnorm()
    chosen = BatchNormOptions(batchnorm_images=20)
    rules = ("shift", "measure", "keep")
    assert [replace(chosen, batchnorm=r).batchnorm_passes(1000) for r in rules] == [40, 20, 0]
    for rule in rules:
        model, before, wanted = net(1), net(0), net(1)
        replace(chosen, batchnorm=rule).update_batchnorm_(model, before, context())
        if rule == "shift":
            shift_batchnorm_(wanted, before, context(), 20)
        if rule == "measure":
            reestimate_batchnorm_(wanted, context(), 20)
        for name, value in statistics(wanted).items():
            assert torch.equal(statistics(model)[name], value), (rule, name)


def one_rank(rank: int):
    model, before = net(), net()
    with torch.no_grad():
        model.conv.weight.mul_(torch.linspace(0.5, 2.0, 27).view(1, 3, 3, 3))
    shift_batchnorm_(model, before, context(), 37, batch_size=64)  # 19 and 18 images
    return {n: v.tolist() for n, v in statistics(model).items()}


def test_two_ranks_hold_the_statistics_of_all_images_together(tmp_path):
    first, second = on_two_ranks(one_rank, tmp_path)
    assert first == second
    together = one_rank(0)
    for name in ("bn.running_mean", "bn.running_var"):
        assert first[name] == pytest.approx(together[name], rel=1e-5)
