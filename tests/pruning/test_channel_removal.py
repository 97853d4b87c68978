"""Channels that are gone: the same answers, files and edits; what cannot be proven stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compressbench.core import artifact, edits
from compressbench.core.batchnorm import batchnorm_layers
from compressbench.core.errors import CheckFailedError
from compressbench.pruning.channels.removal import (
    check_replay,
    remove_channels,
    resize_edit,
)
from compressbench.pruning.channels.settling import example_inputs, settled_coupling
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.prune import Prune
from compressbench.pruning.prune_channels import PruneChannels
from tests.pruning.channel_zoo import (
    SPEC,
    ZOO,
    Awkward,
    Grouped,
    Head,
    Mobile,
    Residual,
    build,
    context,
    details,
    made,
    run,
    silenced,
    trained,
)


@pytest.mark.parametrize("kind", ZOO)
def test_removal_equals_channels_set_to_zero(kind):
    model, inputs = made(kind), torch.randn(3, 3, 8, 8)
    found = settled_coupling(model, example_inputs(SPEC))
    assert found.parts
    for part in found.parts:
        gone = part.atoms[::3]
        small = remove_channels(model, found, gone, example_inputs(SPEC))
        torch.testing.assert_close(small(inputs), silenced(model, found.removed(gone))(inputs))
        for name, channels in part.channels.items():
            width = len(small.get_submodule(name).weight)
            old = len(model.get_submodule(name).weight)
            transposed = isinstance(small.get_submodule(name), nn.ConvTranspose2d)
            assert transposed or width == old - sum(len(channels[atom]) for atom in gone)
        assert sum(p.numel() for p in small.parameters()) < sum(
            p.numel() for p in model.parameters()
        )


@pytest.mark.parametrize("kind", ZOO)
def test_saved_and_loaded_it_is_the_same(kind, tmp_path):
    outcome = run(PruneChannels(L2(), 0.4), made(kind))
    result = replace(outcome.artifact, key="k")
    artifact.save(result, tmp_path)
    loaded = artifact.load(tmp_path, build, "k")
    inputs = torch.randn(4, 3, 8, 8)
    assert torch.equal(loaded.model(inputs), result.model(inputs))
    assert artifact.digest(loaded) == artifact.digest(result)
    assert str(loaded.model) == str(result.model), "an attribute was not restored"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("attention", "mean runs over its channels"),
        ("fixed shape", "the model does not run without its channels"),
        ("tied", "tied to another layer's"),
    ],
)
def test_what_cannot_be_removed_is_left_and_the_rest_is_pruned(kind, reason):
    outcome = run(PruneChannels(L2(), 0.5), made(Awkward, kind))
    assert reason in details(outcome)["strange.0"]
    assert outcome.artifact.model.strange[0].out_channels == 16
    assert outcome.artifact.model.last[0].out_channels == 8
    assert (kind == "fixed shape") == bool(outcome.warnings), "only a failed trial warns"


def test_masked_weights_stay_masked(tmp_path):
    first = Prune(Magnitude(), sparsity=0.5).run({"model": trained(made(Residual))}, context())
    second = PruneChannels(L2(), 0.5).run({"model": first.artifact}, context())
    for name, layer in edits.masked_layers(second.artifact.model).items():
        assert layer.weight_mask.shape == layer.weight.shape
        assert torch.equal(layer.weight_mask, layer.weight != 0), name
    again = Prune(Magnitude(), sparsity=0.9).run({"model": second.artifact}, context())
    for outcome in (second, again):
        artifact.check(outcome.artifact)
        artifact.save(outcome.artifact, tmp_path)
        loaded = artifact.load(tmp_path, build, "")
        assert artifact.digest(loaded) == artifact.digest(outcome.artifact)


def test_channels_can_be_removed_twice(tmp_path):
    first = run(PruneChannels(L2(), 0.3), made(Residual)).artifact
    second = PruneChannels(L2(), 0.3).run({"model": first}, context()).artifact
    artifact.save(second, tmp_path)
    assert artifact.digest(artifact.load(tmp_path, build, "")) == artifact.digest(second)
    assert second.model.stem[0].out_channels == 16


def test_an_edit_that_does_not_tell_the_whole_is_refused():
    model, example = made(Grouped), example_inputs(SPEC)
    found = settled_coupling(model, example)
    (part,) = (p for p in found.parts if p.root == "stem.0")
    small = remove_channels(model, found, part.atoms[:2], example)
    edit = resize_edit(model, small, found.removed(part.atoms[:2]))
    check_replay(model, small, edit, example)
    edit["tensors"].popitem()
    with pytest.raises(CheckFailedError, match="cannot be replayed"):
        check_replay(model, small, edit, example)


def test_measured_statistics_of_batchnorm_are_those_of_the_small_model():
    small = run(PruneChannels(L2(), 0.5, batchnorm="measure"), made(Residual)).artifact.model
    own = context()
    outputs = small.stem[0](own.data.prepare(own.data.split("train").inputs))
    torch.testing.assert_close(small.stem[1].running_mean, outputs.mean((0, 2, 3)))


@pytest.mark.parametrize("kind", [Residual, Mobile])
def test_shifted_statistics_are_those_of_the_channels_that_stay(kind):
    model = made(kind)
    outcome = run(PruneChannels(L2(), 0.5), model)
    removed = outcome.artifact.edits[-1]["removed"]
    small, own = outcome.artifact.model, context()
    images = own.data.prepare(own.data.split("train").inputs)
    stays = [c for c in range(32) if c not in removed["stem.1"]["out"]]
    assert len(stays) == small.stem[1].num_features < 32
    with torch.no_grad():  # a first layer loses outputs alone: nothing else changes for it
        assert torch.equal(small.stem[0](images), model.stem[0](images)[:, stays])
    torch.testing.assert_close(small.stem[1].running_mean, model.stem[1].running_mean[stays])
    torch.testing.assert_close(small.stem[1].running_var, model.stem[1].running_var[stays])
    kept = run(PruneChannels(L2(), 0.5, batchnorm="keep"), model).artifact.model
    for name, layer in batchnorm_layers(model).items():
        gone = removed.get(name, {}).get("out", [])
        stays = [c for c in range(layer.num_features) if c not in gone]
        assert torch.equal(kept.get_submodule(name).running_var, layer.running_var[stays])


def test_the_generator_and_the_flags_are_left_alone():
    model = made(Residual)
    model.stem.requires_grad_(False)
    before = torch.get_rng_state()
    outcome = run(PruneChannels(L2(), 0.5), model)
    assert torch.equal(torch.get_rng_state(), before)
    flags = {n: p.requires_grad for n, p in outcome.artifact.model.named_parameters()}
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    again = run(PruneChannels(L2(), 0.5), model)
    assert artifact.digest(again.artifact) == artifact.digest(outcome.artifact)


class Untraceable(Head):
    def forward(self, x):
        if self.training:
            return self.fc(x.mean((2, 3)))
        return torch.from_numpy(x.mean((2, 3)).numpy() @ self.fc.weight.detach().numpy().T)


class Broken(Head):
    def forward(self, x):
        return self.fc(x)


class Detached(Head):
    def forward(self, x):
        return self.fc(x.flatten(1)[:, :16]).detach()


def test_a_model_that_cannot_be_traced_is_refused():
    with pytest.raises(CheckFailedError, match=r"cannot be followed.*cannot be multiplied"):
        run(PruneChannels(L2(), 0.5), made(Broken, 3))
    for kind, width in ((Untraceable, 3), (Detached, 16)):
        with pytest.raises(CheckFailedError, match=r"no layer can be pruned.*fc: "):
            run(PruneChannels(L2(), 0.5), made(kind, width))


def test_a_layer_that_is_not_used_says_so():
    outcome = run(PruneChannels(L2(), 0.5), made(Awkward, "group norm"))
    assert "16 channels left: the traced output does not depend" in details(outcome)["halved.0"]
