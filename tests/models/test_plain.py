"""Wrappers are taken off; layers with torch's deprecated hooks stay what they compute."""

from __future__ import annotations

import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from compressbench.models.checkpoint import load_checkpoint_
from compressbench.models.plain import plain, release_hooked_

INPUTS = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def hooked(seed=0):
    """A model of deprecated hooks, after a step of training."""
    torch.manual_seed(seed)
    first, second, third = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
    with warnings.catch_warnings(action="ignore"):
        model = nn.Sequential(
            nn.utils.weight_norm(first),
            nn.utils.spectral_norm(second, n_power_iterations=2, dim=1),
            nn.Flatten(),
            nn.utils.weight_norm(third, dim=None),
        )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(INPUTS).square().sum().backward()
    optimizer.step()
    return model.eval()


def test_deprecated_hooks_become_parametrizations_of_the_same_values():
    model = hooked()
    expected = model(INPUTS)
    found = deepcopy(plain(model))
    assert torch.allclose(found(INPUTS), expected, atol=1e-6)
    names = set(found.state_dict())
    assert "0.parametrizations.weight.original1" in names
    assert "1.parametrizations.weight.0._u" in names
    assert not any(name.endswith(("_g", "_orig", "weight_u")) for name in names)
    assert found.load_state_dict(found.state_dict(), strict=True)


def test_weight_norm_trains_alike():
    """spectral_norm does not quite: its two forms improve their vectors in another order."""
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        old = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(50, 3)))
    release_hooked_(old)
    new = plain(deepcopy(old))
    for model in (old, new):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(INPUTS).square().mean().backward()
            optimizer.step()
    assert torch.allclose(old(INPUTS), new(INPUTS), atol=1e-6)


def test_a_model_with_hooks_can_be_copied_after_a_release():
    model = hooked()
    with pytest.raises(RuntimeError, match="deepcopy"):
        deepcopy(model)
    expected = model(INPUTS)
    release_hooked_(model)
    assert deepcopy(model)(INPUTS).equal(expected)
    assert model(INPUTS).equal(expected)


def test_a_checkpoint_of_the_deprecated_hooks_loads(tmp_path):
    trained, fresh = hooked(1), plain(hooked(2))
    torch.save(trained.state_dict(), tmp_path / "old.pt")
    load_checkpoint_(fresh, tmp_path / "old.pt")
    assert torch.allclose(fresh(INPUTS), trained(INPUTS), atol=1e-6)


def test_wrappers_are_taken_off_at_any_depth():
    inner = nn.Linear(2, 2)
    model = nn.Sequential(torch.compile(nn.DataParallel(inner)), nn.ReLU())
    assert plain(nn.DataParallel(torch.compile(model))) is model
    assert model[0] is inner


@pytest.mark.parametrize("deep", [False, True])
def test_a_scripted_module_is_refused(deep):
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(nn.Linear(2, 2))
    model = nn.Sequential(nn.ReLU(), scripted) if deep else scripted
    with pytest.raises(UserError, match="its layer 1 is a TorchScript" if deep else "TorchScript"):
        plain(model)
