"""Gradual and iterative pruning, rewinding, group lasso: their schedules, and stops in between."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch

from compressbench.core import artifact
from compressbench.core.errors import UserError
from compressbench.core.types import MASKED, TRAINED, Artifact
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.criteria.movement import Movement
from compressbench.pruning.criteria.snip import Snip
from compressbench.pruning.criteria.sparsegpt import SparseGpt
from compressbench.pruning.prune_channels import PruneChannels
from compressbench.pruning.prune_gradual import PruneGradually
from compressbench.training.finetune import Finetune, group_lasso
from compressbench.training.train import Train
from tests.pruning.schedule_net import (
    FIT,
    LAYERS,
    STEPS,
    Died,
    gradual,
    net,
    rounds,
    trained,
    zeros,
)
from tests.training.test_fit import Blobs, context


def test_the_share_of_zeros_follows_the_cubic_schedule(tmp_path, monkeypatch):
    seen = []
    original = PruneGradually.prune

    def spy(self, sparsity, learnt=None):
        seen.append(sparsity)
        return original(self, sparsity, learnt)

    stage = gradual(0.8, updates=3, until=0.5)
    monkeypatch.setattr(PruneGradually, "prune", spy)
    outcome = stage.run({"model": trained()}, context(tmp_path))
    last = round(0.5 * 2 * STEPS)  # step 6 of 12: updates after steps 2, 4 and 6
    rises = [0.8 - 0.8 * (1 - step / last) ** 3 for step in (2, 4, 6)]
    assert seen[-3:] == pytest.approx(rises)
    assert zeros(outcome.artifact.model) == round(0.8 * 128)
    assert outcome.history["prune/sparsity"] == pytest.approx([0.8, 0.8])
    assert sum(row.touched for row in outcome.coverage) == round(0.8 * 128)
    artifact.check(outcome.artifact)


def test_masks_only_grow_and_weights_train_in_between(tmp_path, monkeypatch):
    masks = []
    from compressbench.pruning.prune_gradual import _Rising

    original = _Rising.tighten_

    def spy(self, model, sparsity):
        original(self, model, sparsity)
        masks.append([model.get_submodule(n).weight_mask.clone() for n in LAYERS])

    monkeypatch.setattr(_Rising, "tighten_", spy)
    outcome = gradual(0.7, updates=5).run({"model": trained()}, context(tmp_path))
    assert len(masks) == 5
    for earlier, later in itertools.pairwise(masks):
        assert all(not bool((new & ~old).any()) for old, new in zip(earlier, later, strict=True))
        assert sum(int((~m).sum()) for m in later) > sum(int((~m).sum()) for m in earlier)
    start = net()
    moved = outcome.artifact.model[1].weight != start[1].weight
    assert bool(moved[outcome.artifact.model[1].weight != 0].all())


def test_a_criterion_with_gradients_and_a_start_that_is_sparse(tmp_path):
    first = gradual(0.3).run({"model": trained()}, context(tmp_path / "a")).artifact
    stage = replace(gradual(0.6), criterion=Snip(32, 16))
    second = stage.run({"model": first}, context(tmp_path / "b")).artifact
    assert zeros(second.model) == round(0.6 * 128)
    before = [first.model.get_submodule(n).weight == 0 for n in LAYERS]
    after = [second.model.get_submodule(n).weight == 0 for n in LAYERS]
    assert all(bool(new[old].all()) for old, new in zip(before, after, strict=True))
    named = [n for e in second.edits if e["kind"] == "mask" for n in e["layers"]]
    assert sorted(named) == sorted(set(named))


def moving(**options) -> PruneGradually:
    return replace(gradual(**options), criterion=Movement())


@pytest.mark.parametrize("make", [
    partial(gradual, epochs=4), partial(moving, epochs=4), partial(rounds, rounds=3, epochs=2),
])  # fmt: skip
def test_a_stopped_one_ends_on_the_same_bits(make, tmp_path, monkeypatch):
    whole = make().run({"model": trained()}, context(tmp_path / "whole"))
    steps = 0
    augment = Blobs.augment

    def dying(self, inputs, generator):
        nonlocal steps
        steps += 1
        if steps > 3.5 * STEPS:
            raise Died
        return augment(self, inputs, generator)

    monkeypatch.setattr(Blobs, "augment", dying)
    with pytest.raises(Died):
        make().run({"model": trained()}, context(tmp_path / "b"))
    monkeypatch.setattr(Blobs, "augment", augment)
    steps, counted = 0, []
    monkeypatch.setattr(Blobs, "augment", lambda s, i, g: (counted.append(1), augment(s, i, g))[1])
    again = make().run({"model": trained()}, context(tmp_path / "b"))
    assert artifact.digest(again.artifact) == artifact.digest(whole.artifact)
    assert again.history == whole.history
    total = (6 if make.func is rounds else 4) * STEPS
    assert 0 < len(counted) <= total - 3 * STEPS, "what was done is not done again"


def test_every_round_takes_the_same_share_of_what_is_left(tmp_path):
    stage = rounds(0.784, rounds=3)
    assert [stage.sparsity_after(n) for n in (1, 2, 3)] == pytest.approx([0.4, 0.64, 0.784])
    outcome = stage.run({"model": trained()}, context(tmp_path))
    assert zeros(outcome.artifact.model) == round(0.784 * 128)
    assert len(outcome.history["train/loss"]) == 3
    assert outcome.artifact.properties == {TRAINED, MASKED}
    assert sum(row.touched for row in outcome.coverage) == round(0.784 * 128)
    artifact.check(outcome.artifact)


def test_the_epoch_asked_for_is_kept_and_stored(tmp_path):
    train = Train(**FIT, epochs=3, keep_epoch=1)
    fresh = Artifact(net(), {"_target_": "net"}, (), frozenset())
    long = train.run({"model": fresh}, context(tmp_path / "a")).artifact
    initial = Train(**FIT, epochs=3, keep_epoch=0).run({"model": fresh}, context(tmp_path / "b"))
    start = net().state_dict()
    assert all(torch.equal(v, start[n]) for n, v in initial.artifact.early.items())
    assert not torch.equal(long.early["1.weight"], start["1.weight"])
    assert not torch.equal(long.early["1.weight"], long.model[1].weight)
    plain = Train(**FIT, epochs=3).run({"model": fresh}, context(tmp_path / "c")).artifact
    assert artifact.digest(plain) == artifact.digest(long), "keeping changes nothing else"
    folder = tmp_path / "saved"
    folder.mkdir()
    artifact.save(long, folder)
    loaded = artifact.load(folder, lambda config: net(), "k")
    assert loaded.early.keys() == long.early.keys()
    assert all(torch.equal(v, loaded.early[n]) for n, v in long.early.items())


def test_rewound_weights_are_those_of_the_early_epoch_under_the_final_mask(tmp_path, monkeypatch):
    from compressbench.pruning import prune_iterative

    fresh = Artifact(net(), {"_target_": "net"}, (), frozenset())
    start = (
        Train(**FIT, epochs=2, keep_epoch=1).run({"model": fresh}, context(tmp_path / "a")).artifact
    )
    began = []
    learn = prune_iterative.objective.learn

    def spy(pruned, *rest):
        began.append(pruned)
        return learn(pruned, *rest)

    monkeypatch.setattr(prune_iterative.objective, "learn", spy)
    outcome = rounds(0.75, rewind=True).run({"model": start}, context(tmp_path / "b"))
    assert [zeros(a.model) for a in began] == [64, 96]
    for pruned in began:
        for name in LAYERS:
            layer = pruned.model.get_submodule(name)
            early = start.early[f"{name}.weight"]
            assert torch.equal(layer.weight, early * layer.weight_mask)
        assert torch.equal(pruned.model[2].running_mean, start.early["2.running_mean"])
    assert zeros(outcome.artifact.model) == 96


def test_rewinding_needs_an_epoch_that_was_kept():
    stage = rounds(rewind=True)
    kept = Train(**FIT, epochs=3, keep_epoch=1)
    stage.check_line([kept])
    narrow = PruneChannels(Magnitude(), 0.5)
    for line in ([], [Train(**FIT, epochs=3)], [kept, narrow]):
        with pytest.raises(UserError, match="rewind needs weights of an early epoch: set keep_epo"):
            stage.check_line(line)
    with pytest.raises(UserError, match="rewind needs"):
        stage.run({"model": trained()}, context("."))
    with pytest.raises(UserError, match=r"keep_epoch must be an integer in \[0, 3\], got 4"):
        Train(**FIT, epochs=3, keep_epoch=4)
    with pytest.raises(UserError, match="keep_epoch=1: nothing is trained"):
        kept.run({"model": trained()}, context("."))


def test_group_lasso_is_its_formula_and_pulls_channels_together(tmp_path):
    model = net()
    expected = 6**0.5 * model[1].weight.norm(dim=1).sum() + 4 * model[4].weight.norm(dim=1).sum()
    torch.testing.assert_close(group_lasso(model), expected)
    norms = []
    for factor in (0.0, 0.05):
        stage = Finetune(**FIT, epochs=4, group_lasso=factor)
        result = stage.run({"model": trained()}, context(tmp_path / str(factor))).artifact
        norms.append(result.model[1].weight.norm(dim=1))
    assert norms[1].sum() < 0.7 * norms[0].sum()
    assert norms[1].min() / norms[1].max() < 0.7 * norms[0].min() / norms[0].max()
    with pytest.raises(UserError, match="group_lasso must be a number of at least 0, got -1"):
        Finetune(**FIT, epochs=4, group_lasso=-1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: gradual(1.0), r"sparsity must be a number in \[0, 1\)"),
        (lambda: gradual(until=1.0), "until must be"),
        (lambda: gradual(updates=0), "updates must be an integer of at least 1"),
        (lambda: gradual(pattern="2:4"), "2:4 is a target of its own"),
        (lambda: replace(gradual(), criterion=SparseGpt()), "updates weights cannot be combined"),
        (lambda: replace(rounds(), criterion=Movement()), "movement is learned during training"),
        (lambda: rounds(rounds=0), "rounds must be an integer of at least 1"),
        (lambda: rounds(-0.5), "sparsity must be"),
    ],
)
def test_options_are_checked(make, text):
    with pytest.raises(UserError, match=text):
        make()
