"""Movement pruning: against a slow loop."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch.func import functional_call
from torch.nn import functional as F

from compressbench.core import artifact
from compressbench.data.batches import batches
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.criteria.movement import Movement
from compressbench.pruning.prune_gradual import PruneGradually
from compressbench.training.fits.fit import _mix
from compressbench.training.fits.schedule import schedule_of
from tests.pruning.schedule_net import LAYERS, PLAIN, STEPS, gradual, net, trained, zeros
from tests.training.test_fit import context


def slow_movement(stage: PruneGradually, place) -> tuple[dict[str, torch.Tensor], list]:
    """Movement pruning as the paper has it: scores and weights of their own, W M in the model."""
    model = net().train()
    weights = {n: model.get_submodule(n).weight.detach().clone() for n in LAYERS}
    scores = {n: torch.zeros_like(w) for n, w in weights.items()}
    masks = {n: torch.ones_like(w) for n, w in weights.items()}
    others = [p for n, p in model.named_parameters() if n.removesuffix(".weight") not in LAYERS]
    steps = round(stage.epochs * STEPS)
    last, seen = round(stage.until * steps), []
    due = {max(1, round(last * n / stage.updates)) for n in range(1, stage.updates + 1)}
    for step in range(steps):
        epoch = batches(place.data, "train", 16, device=torch.device("cpu"), augment=True,
                        drop_last=True, shuffle_seed=_mix(place.seed, step // STEPS))  # fmt: skip
        inputs, targets = next(itertools.islice(epoch, step % STEPS, None))
        rate = 0.05 * schedule_of(stage).factor(step, steps)
        under = {n: (weights[n] * masks[n]).requires_grad_() for n in LAYERS}
        given = {f"{n}.weight": w for n, w in under.items()}
        loss = F.cross_entropy(functional_call(model, given, (inputs,)), targets)
        gradients = torch.autograd.grad(loss, [*under.values(), *others])
        with torch.no_grad():
            for n, gradient in zip(LAYERS, gradients, strict=False):
                scores[n] -= rate * gradient * weights[n]
                weights[n] -= rate * gradient * masks[n]
            for parameter, gradient in zip(others, gradients[len(LAYERS) :], strict=True):
                parameter -= rate * gradient
        if step + 1 in due:
            gone = round(stage.sparsity_at((step + 1) / last, 0.0) * 128)
            flat = torch.cat([scores[n].flatten() for n in LAYERS])
            for n in LAYERS:
                masks[n] = (scores[n] > flat.sort().values[gone - 1]).float()
            seen.append({n: m.clone() for n, m in masks.items()})
    return {n: weights[n] * masks[n] for n in LAYERS}, seen


def test_movement_equals_a_slow_loop_and_lets_weights_come_back(tmp_path):
    stage = replace(gradual(0.7, updates=5, epochs=3), criterion=Movement(), optimizer=PLAIN)
    outcome = stage.run({"model": trained()}, context(tmp_path))
    expected, masks = slow_movement(stage, context(tmp_path))
    for name in LAYERS:
        found = outcome.artifact.model.get_submodule(name).weight.detach()
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)
    pairs = [(old[n], new[n]) for old, new in itertools.pairwise(masks) for n in LAYERS]
    assert any(bool((new > old).any()) for old, new in pairs), "some weight went and came back"
    by_size = replace(stage, criterion=Magnitude()).run(
        {"model": trained()}, context(tmp_path / "m")
    )
    masks = [o.artifact.model[1].weight_mask for o in (outcome, by_size)]
    assert not torch.equal(*masks)
    artifact.check(outcome.artifact)


def test_what_was_zero_before_movement_stays_so(tmp_path):
    first = gradual(0.3).run({"model": trained()}, context(tmp_path / "a")).artifact
    stage = replace(gradual(0.6), criterion=Movement())
    second = stage.run({"model": first}, context(tmp_path / "b")).artifact
    assert zeros(second.model) == round(0.6 * 128)
    for name in LAYERS:
        gone = first.model.get_submodule(name).weight == 0
        assert not bool(second.model.get_submodule(name).weight[gone].any())
