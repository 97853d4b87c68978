from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compressbench.core.errors import UserError
from compressbench.models.checkpoint import load_checkpoint_


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten())


def states_equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(first[n].equal(second[n]) for n in first)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "model.module.", "_orig_mod.", "module._orig_mod."]
)
def test_tensors_arrive_whatever_the_container(tmp_path, suffix, prefix):
    trained, fresh = network(1), network(2)
    state = prefixed(trained.state_dict(), prefix)
    path = tmp_path / f"weights ä{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    load_checkpoint_(fresh, path)
    assert states_equal(fresh, trained)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "weights"])
def test_a_nested_state_is_found(tmp_path, key):
    trained, fresh = network(1), network(2)
    state = prefixed(trained.state_dict(), "model.")
    more = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    torch.save({**more, key: state}, tmp_path / "c.pt")
    load_checkpoint_(fresh, str(tmp_path / "c.pt"))
    assert states_equal(fresh, trained)


def test_of_two_nested_states_the_model_is_taken_or_none(tmp_path):
    trained, fresh = network(1), network(2)
    states = {"ema": network(3).state_dict(), "model": trained.state_dict()}
    torch.save(states, tmp_path / "c.pt")
    load_checkpoint_(fresh, tmp_path / "c.pt")
    assert states_equal(fresh, trained)
    torch.save({"ema": states["ema"], "weights": states["model"]}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="'ema' must be a tensor"):
        load_checkpoint_(fresh, tmp_path / "c.pt")


def test_a_prefix_of_the_models_own_stays(tmp_path):
    trained, fresh = (nn.ModuleDict({"model": network(seed)}) for seed in (1, 2))
    torch.save(prefixed(trained.state_dict(), "module."), tmp_path / "c.pt")
    load_checkpoint_(fresh, tmp_path / "c.pt")
    assert states_equal(fresh, trained)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("environment", ["", "1"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_never_runs(tmp_path, monkeypatch, environment, zipped):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", environment)
    marker, path = tmp_path / "marker", tmp_path / "c.pt"
    content = {"state_dict": network().state_dict(), "extra": Malicious(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"^checkpoint .*c\.pt: contains objects other [^\n]*$"):
        load_checkpoint_(network(), path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file is really malicious
    assert marker.exists()


def broken(change):
    state = network(1).state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (broken(lambda s: s.pop("1.bias")), "missing: 1.bias"),
        (broken(lambda s: s.update({"9.weight": torch.ones(1)})), "not in the model: 9.weight"),
        (
            network(width=5).state_dict(),
            r"shapes differ: 0.weight is \[5, 1, 3, 3\], the model's \[4, 1, 3, 3\], "
            r"0.bias is .* and 3 more",
        ),
        (broken(lambda s: s["0.weight"].fill_(float("nan"))), "0.weight holds NaN"),
        (broken(lambda s: s["1.bias"].fill_(float("inf"))), "1.bias holds NaN or infinity"),
        ({"0.weight": [1.0, 2.0]}, "'0.weight' must be a tensor, got list"),
        ({"state_dict": {}}, "contains no tensors"),
        ([torch.ones(1)], "must contain a dict, got list"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_loaded(tmp_path, state, message):
    path, model, before = tmp_path / "c.pt", network(2), network(2)
    torch.save(state, path)
    with pytest.raises(UserError, match=f"^checkpoint .*c.pt: .*{message}") as caught:
        load_checkpoint_(model, path)
    assert "\n" not in str(caught.value)
    assert states_equal(model, before)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"nonsense", "truncated"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, suffix, content):
    path = tmp_path / f"c{suffix}"
    if content == "truncated":
        state = network().state_dict()
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        content = path.read_bytes()[:-200]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^checkpoint [^\n]*$"):
        load_checkpoint_(network(), path)


def test_a_missing_file_or_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pt: no such file"):
        load_checkpoint_(network(), tmp_path / "absent.pt")
    (tmp_path / "c.pkl").write_bytes(b"")
    with pytest.raises(UserError, match=r"must end in \.safetensors, \.pt"):
        load_checkpoint_(network(), tmp_path / "c.pkl")
