"""Digests of modules: the same for the same, others for whatever can change what they compute."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
import threading
import types
from copy import deepcopy

import pytest
import torch
from torch import nn

from compressbench.api.description import module_sha256, state_sha256
from compressbench.models.small_cnn import SmallCnn

PROGRAM = """
import torch
from torch import nn

SCALE = 0.5
UNUSED = 1

def shifted(x):
    return x + 1

class Net(nn.Module):
    slope = 0.1

    def __init__(self, alpha=0.2):
        super().__init__()
        self.alpha = alpha
        self.layer = nn.Linear(4, 3)
        self.register_buffer("table", torch.ones(3), persistent=False)

    def forward(self, x):
        return shifted(self.layer(x)) * SCALE * self.alpha * self.table

    @property
    def half(self):
        return SCALE / 2
"""


def program(old="", new="", program=PROGRAM):
    """The names of a program in which one text is another, as a notebook would have them."""
    assert old in program
    module = types.ModuleType("__main__")
    exec(program.replace(old, new), vars(module))
    return module


def net(old="", new=""):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return program(old, new).Net()


def test_a_copy_and_a_class_defined_again_are_the_same():
    first = net()
    assert module_sha256(first) == module_sha256(deepcopy(first)) == module_sha256(net())
    assert module_sha256(net("UNUSED = 1", "UNUSED = 2")) == module_sha256(first)
    assert module_sha256(net("    slope", "    # a comment\n    slope")) == module_sha256(first)


@pytest.mark.parametrize(
    ("old", "new"),
    [("* self.alpha", "/ self.alpha"), ("x + 1", "x - 1"), ("SCALE = 0.5", "SCALE = 0.6"),
     ("slope = 0.1", "slope = 0.3"), ("alpha=0.2", "alpha=0.4"), ("SCALE / 2", "SCALE / 3"),
     ("nn.Linear(4, 3)", "nn.Linear(4, 3, bias=False)"), ("x + 1", "x + True")],
)  # fmt: skip
def test_an_edit_shows(old, new):
    assert module_sha256(net(old, new)) != module_sha256(net())


def test_weights_show_in_the_state_alone():
    first, second = net(), net()
    assert state_sha256(first) == state_sha256(second)
    with torch.no_grad():
        second.layer.weight[1, 2] += 1e-6
    assert state_sha256(first) != state_sha256(second)
    assert module_sha256(first) == module_sha256(second)
    third = net()
    third.table[0] = 2.0  # which state_dict() does not have
    assert state_sha256(third) != state_sha256(first)


def test_what_hangs_on_a_module_shows():
    plain = module_sha256(net())
    with_tensor, frozen, hooked, swapped = net(), net(), net(), net()
    with_tensor.loose = [nn.Parameter(torch.zeros(2))]
    frozen.layer.weight.requires_grad_(False)
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    swapped.forward = types.MethodType(lambda self, x: self.layer(x), swapped)
    digests = [module_sha256(m) for m in (with_tensor, frozen, hooked, swapped)]
    assert len({plain, *digests}) == 5
    with_tensor.loose[0].data += 1
    assert module_sha256(with_tensor) != digests[0]


def test_hooks_are_not_told_apart_by_their_numbers():
    def doubled(module, inputs, output):
        return output * 2

    first, second = net(), net()
    first.register_forward_hook(doubled)
    nn.Linear(1, 1).register_forward_hook(doubled)  # which counts on
    second.register_forward_hook(doubled)
    assert module_sha256(first) == module_sha256(second)


def test_values_of_many_kinds_are_described():
    def made(number, shape):
        module = nn.Sequential(nn.LSTM(3, 4), nn.Conv2d(1, 2, 3))
        module.kinds = {
            "partial": functools.partial(torch.clamp, min=number),
            "closure": lambda x: x * number,
            "array": torch.arange(number).numpy(),
            "others": [torch.float16, torch.Size([1]), {1, 2}, b"x", 1j, slice(3), functools],
            "object": types.SimpleNamespace(shape=shape),
        }
        module.kinds["itself"] = module.kinds
        return module

    assert module_sha256(made(3, [1])) == module_sha256(made(3, [1]))
    assert len({module_sha256(made(n, s)) for n in (2, 3) for s in ([1], [2])}) == 4


def test_what_cannot_be_described_is_never_the_same():
    module = net()
    module.lock = threading.Lock()
    assert module_sha256(module) != module_sha256(module)


def test_a_helper_in_another_file_of_the_program_shows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper_of_net.py").write_text("def shifted(x):\n    return x + 1\n")
    text = PROGRAM.replace("def shifted(x):\n    return x + 1", "import helper_of_net")
    text = text.replace("shifted(self", "helper_of_net.shifted(self")
    before = module_sha256(program(program=text).Net())
    assert module_sha256(program(program=text).Net()) == before
    helper = sys.modules["helper_of_net"]
    monkeypatch.setattr(helper, "shifted", lambda x: x + 2)
    assert module_sha256(program(program=text).Net()) != before


def test_processes_agree():
    code = PROGRAM + textwrap.dedent("""
        from compressbench.api.description import module_sha256, state_sha256
        from compressbench.models.small_cnn import SmallCnn
        torch.manual_seed(0)
        print(module_sha256(Net()), module_sha256(SmallCnn([1, 8, 8], 10)), state_sha256(Net()))
    """)
    runs = [
        subprocess.Popen([sys.executable, "-X", f"utf8={n}", "-c", code], stdout=subprocess.PIPE)
        for n in (0, 1)
    ]
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert said[0] == said[1] != b""
    assert said[0].split()[1].decode() == module_sha256(SmallCnn([1, 8, 8], 10))
