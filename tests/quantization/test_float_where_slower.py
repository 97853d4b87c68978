"""Activations that stay in float where a file is then faster: the choice, the model, its file."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressbench.core import artifact as artifacts
from compressbench.core.activation_quantizers import CHILD
from compressbench.core.edits import activation_grid, apply_edit_
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.export.onnx import export_onnx
from compressbench.quantization.float_where_slower import FILES, MOST_FILES, without_sites
from compressbench.quantization.grids.site_groups import Sites
from compressbench.quantization.observers.dynamic import Dynamic
from compressbench.quantization.observers.minmax import MinMax
from tests.quantization.quantized_net import Net, Noise, context, images, stage, start


def quantized():
    return stage(MinMax()).run({"model": start()}, context()).artifact


def sites_of(artifact):
    return [
        (s["layer"], s["function"], s["index"]) for s in activation_grid(artifact.edits)["sites"]
    ]


def clocked(cost, *, luck=1.0, size=lambda artifact: 1000, **options):
    """The stage on a machine where `cost` maps the sites of a file to its time, and where the first
    look at a file says `luck` of that; its outcome, and how often each file was timed.
    """
    looks = {}

    def against(original):
        whole = cost(sites_of(original))

        def share(artifact):
            sites = tuple(sites_of(artifact))
            looks[sites] = looks.get(sites, 0) + 1
            return cost(sites) / whole * (luck if looks[sites] == 1 else 1.0)

        return share

    own = replace(context(), timed_against=against, export_bytes=size)
    made = stage(MinMax(), float_where_slower=True, **options)
    return made.run({"model": start()}, own), looks


def with_slow(*slow):
    """Time of a file: a fixed part, and each quantized site costs or saves some."""
    return lambda sites: 20 + sum(5 if site in slow else -1 for site in sites)


def test_the_sites_that_cost_time_stay_in_float():
    everywhere = sites_of(quantized())
    assert ("depthwise", "conv2d", 0) in everywhere, "the output of the depthwise convolution"
    outcome, looks = clocked(with_slow(("depthwise", "conv2d", 0)))
    assert sites_of(outcome.artifact) == [s for s in everywhere if s != ("depthwise", "conv2d", 0)]
    assert activation_grid(outcome.artifact.edits)["in_float"] == 1
    artifacts.check(outcome.artifact)
    rows = outcome.tables[FILES]
    assert [row["sites"] for row in rows if row["kept"]] == ["depthwise"]
    assert len(looks) == len(rows) <= MOST_FILES
    details = {row.layer: row.detail for row in outcome.coverage}
    cost = with_slow(("depthwise", "conv2d", 0))
    gain = cost(sites_of(outcome.artifact)) / cost(everywhere)
    for layer in ("depthwise", "grouped"):  # one has it as its output, the other as its input
        assert details[layer] == f"8-bit per channel; float: faster here ({gain:.2f})"
    for layer in ("stem", "fc"):
        assert details[layer] == "8-bit per channel"


@pytest.mark.parametrize("seed", range(3))
def test_the_climb_never_ends_above_all_integers_nor_above_all_float(seed):
    drawn = random.Random(seed)
    costs = {site: drawn.uniform(-1, 1) for site in sites_of(quantized())}

    def cost(sites):
        return 10 + sum(costs[site] for site in sites)

    outcome, _ = clocked(cost)
    found = cost(sites_of(outcome.artifact))
    assert found <= min(cost(costs), cost([]))


def test_all_may_stay_in_float():
    outcome, _ = clocked(lambda sites: 10 + len(sites))
    assert sites_of(outcome.artifact) == []
    artifacts.check(outcome.artifact)
    assert torch.isfinite(outcome.artifact.model(images())).all()
    assert all("faster here" in row.detail for row in outcome.coverage)


def test_nothing_changes_where_integers_are_faster():
    outcome, _ = clocked(with_slow())
    assert sites_of(outcome.artifact) == sites_of(quantized())
    assert not any(row["kept"] for row in outcome.tables[FILES])
    assert not any("faster" in row.detail for row in outcome.coverage)


def test_a_gain_that_does_not_repeat_is_none():
    outcome, looks = clocked(with_slow(), luck=0.7)
    assert sites_of(outcome.artifact) == sites_of(quantized())
    assert max(looks.values()) == 2, "what looked faster was timed again"


def test_a_file_that_grows_too_much_is_not_taken():
    everywhere = len(sites_of(quantized()))

    def size(artifact):
        return 1000 + 60 * (everywhere - len(sites_of(artifact)))

    two = (("depthwise", "conv2d", 0), ("", "relu", 0))
    free, _ = clocked(with_slow(*two), size=size, max_growth=0.2)
    tight, _ = clocked(with_slow(*two), size=size, max_growth=0.1)
    none, _ = clocked(with_slow(*two), size=size, max_growth=0.0)
    left = [everywhere - len(sites_of(o.artifact)) for o in (free, tight, none)]
    assert left == [2, 1, 0]


@pytest.mark.parametrize("seed", range(4))
def test_a_model_without_sites_is_the_whole_one_without_their_rounding(tmp_path, seed):
    full = quantized()
    count = len(sites_of(full))
    left = set(random.Random(seed).sample(range(count), seed * count // 3))
    found = without_sites(full, left)
    given = images()
    with torch.no_grad():
        rounded = full.model(given)
        actual = found.model(given)
        for number in left:
            full.model.get_submodule(CHILD)[number] = nn.Identity()
        expected = full.model(given)
    assert torch.equal(actual, expected)
    assert torch.equal(actual, rounded) == (not left)
    again = Net().eval()
    for edit in found.edits:
        apply_edit_(again, edit)
    again.load_state_dict(found.model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(given), expected)


@pytest.mark.parametrize("seed", range(1, 4))
def test_the_layers_said_to_be_in_float_are_those_of_the_file(tmp_path, seed):
    full = quantized()
    sites = activation_grid(full.edits)["sites"]
    left = set(random.Random(seed).sample(range(len(sites)), seed))
    report = export_onnx(without_sites(full, left), Noise(), tmp_path / "model.onnx")
    in_file = {row["layer"] for row in report["layers"] if row["kernel"] == "float"}
    said = Sites(full.model, sites, Noise().spec.blank(2)).layers_in_float(left)
    assert set(said) == in_file


def test_each_site_is_in_some_group_of_its_own_kind():
    full = quantized()
    sites = activation_grid(full.edits)["sites"]
    groups = Sites(full.model, sites, Noise().spec.blank(2)).groups()
    named = {group.name: sorted(group.sites) for group in groups}
    assert named["all"] == list(range(len(sites)))
    assert [sites_of(full)[n] for n in named["depthwise"]] == [("depthwise", "conv2d", 0)]
    assert len({group.sites for group in groups}) == len(groups)


def test_a_choice_that_cannot_be_made_is_refused():
    for activation in (None, Dynamic()):
        with pytest.raises(UserError, match="float_where_slower=true needs static ranges"):
            stage(activation, float_where_slower=True)
    with pytest.raises(UserError, match=r"max_growth must be a number in \[0, 1\), got 1"):
        stage(MinMax(), max_growth=1)
    with pytest.raises(CheckFailedError, match="needs an exporter, but none is available"):
        stage(MinMax(), float_where_slower=True).run({"model": start()}, context())
    assert stage(MinMax(), float_where_slower=True).times_files
    assert not stage(MinMax()).times_files
