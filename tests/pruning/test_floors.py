"""Limits that cannot be met are found from the coupling alone, as the stage itself finds them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compressbench.core.errors import LimitError, UserError
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.prune_channels import PruneChannels
from tests.pruning.channel_zoo import (
    SPEC,
    Flat,
    Grouped,
    Mobile,
    Residual,
    context,
    made,
    run,
    trained,
)


@pytest.mark.parametrize("kind", [Residual, Mobile, Grouped, Flat])
@pytest.mark.parametrize("limit", ["macs", "params"])
@pytest.mark.parametrize("options", [{}, {"round_to": 3}, {"max_layer_sparsity": 0.5}])
def test_the_plan_refuses_what_the_stage_would(kind, limit, options):
    stage = PruneChannels(L2(), **{limit: 0.01}, **options)
    with pytest.raises(LimitError) as planned:
        stage.check_limits(made(kind), SPEC)
    with pytest.raises(LimitError) as found:
        run(stage, made(kind))
    assert str(planned.value) == str(found.value)
    assert planned.value.excess == found.value.excess > 0


@pytest.mark.parametrize("kind", [Residual, Mobile, Grouped, Flat])
def test_the_least_that_the_message_names_can_be_met(kind):
    with pytest.raises(LimitError) as planned:
        PruneChannels(L2(), macs=1).check_limits(made(kind), SPEC)
    least = int(str(planned.value).partition("at least ")[2].partition(" ")[0].replace(",", ""))
    assert planned.value.excess == least - 1
    exact = PruneChannels(L2(), macs=least)
    exact.check_limits(made(kind), SPEC)
    run(exact, made(kind))
    with pytest.raises(LimitError):
        PruneChannels(L2(), macs=least - 1).check_limits(made(kind), SPEC)


def test_a_limit_that_is_met_already_is_refused_in_the_plan():
    with pytest.raises(UserError, match=r"nothing to prune: macs is .* already"):
        PruneChannels(L2(), macs=10**9).check_limits(made(Residual), SPEC)
    PruneChannels(L2(), macs=10**9, latency=0.5).check_limits(made(Residual), SPEC)
    PruneChannels(L2(), sparsity=0.5).check_limits(made(Residual), SPEC)


def test_nothing_is_measured_for_a_file_that_cannot_be_small_enough(monkeypatch):
    def never(*given):
        raise AssertionError("no sensitivity is needed to see this")

    monkeypatch.setattr("compressbench.pruning.prune_channels.by_damage", never)
    stage = PruneChannels(L2(), onnx_bytes=100, scope="sensitivity")
    with pytest.raises(LimitError, match=r"onnx_bytes=100 cannot be reached.* at least \d"):
        stage.run(
            {"model": trained(made(Residual))},
            replace(context(), export_bytes=lambda artifact: 5_000),
        )
