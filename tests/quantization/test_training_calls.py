"""Training rounds the same activations as evaluation, whatever else it computes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from compressbench.core.activation_quantizers import attach_
from compressbench.core.activation_sites import find_sites, site_name
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import DataSpec
from compressbench.quantization.trained.training_calls import check_training_calls
from tests.quantization.training_zoo import (
    Auxiliary,
    Dropped,
    Functional,
    OtherPath,
    RandomLoop,
    Skipping,
    Twice,
    symbolic,
)

SAME = {
    "where": partial(Dropped, "where"),
    "mul": partial(Dropped, "mul"),
    "more": partial(Dropped, "more"),
    "auxiliary": Auxiliary,
    "twice": Twice,
    "functional": Functional,
    "fx": symbolic,
}


def spec(width: int = 5) -> DataSpec:
    return DataSpec("noise", (width,), ("a", "b"), (), ())


def observed(model: nn.Module, inputs: torch.Tensor) -> dict[int, torch.Tensor]:
    """The value at each site that one pass reaches."""
    seen: dict[int, torch.Tensor] = {}
    model.activation_quantizers.observe = lambda number, values: seen.update({number: values})
    with torch.no_grad():
        model(inputs)
    return seen


@pytest.mark.parametrize("build", SAME.values(), ids=SAME)
def test_more_calls_in_training_move_no_site(build):
    torch.manual_seed(0)
    model = build().eval()
    inputs = torch.randn(7, 5)
    sites = find_sites(model, inputs)
    attach_(model, {"sites": sites, "bits": 8})
    expected = observed(model, inputs)
    assert list(expected) == list(range(len(sites)))
    assert len({(s["path"], s["function"], s["index"]) for s in sites}) == len(sites)
    seen = observed(model.train(), inputs)
    assert model.training and all(m.training for m in model.modules())
    assert seen.keys() == expected.keys()
    for number, values in expected.items():
        assert torch.equal(seen[number], values), site_name(sites[number])
    check_training_calls(build(), spec())


def test_a_block_that_is_skipped_leaves_the_others_their_ranges():
    model = Skipping().eval()
    inputs = torch.randn(3, 4)
    sites = find_sites(model, inputs)
    attach_(model, {"sites": sites, "bits": 8})
    additions = [n for n, site in enumerate(sites) if site["function"] == "add"]
    assert len(additions) == 4
    model.train()
    torch.manual_seed(1)
    numbers = set()
    for _ in range(40):
        seen = observed(model, inputs)
        numbers.add(len(seen))
        for block, number in enumerate(additions):
            if number in seen:
                assert (seen[number][:, block] == 1).all(), "the block itself was added"
                assert (seen[number][:, block + 1 :] == 0).all(), "and none after it"
    assert len(numbers) > 2, "blocks were skipped"
    check_training_calls(Skipping(), spec(4))
    with pytest.raises(CheckFailedError, match="activation quantizers were reached"):
        skipping = model.eval()
        skipping.blocks = skipping.blocks[:2]
        skipping(inputs)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OtherPath(), "the model computes :tanh in evaluation but not in training"),
        (nn.Sequential(OtherPath(), nn.Linear(5, 2)), "layer 0 computes 0:tanh in evaluation"),
        (RandomLoop(), "the model calls relu [13] times in training where it calls it 2 times"),
        (nn.Sequential(RandomLoop(), nn.ReLU()), "0 calls relu [13] times in training where"),
    ],
)
def test_what_cannot_be_matched_is_refused_before_training_and_named(model, message):
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=message) as error:
        check_training_calls(model.eval(), spec())
    assert "\n" not in str(error.value)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
