"""Sites of a forward pass are the same wherever the model runs."""

from __future__ import annotations

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from compressbench.core.call_stack import CallStack, Places


class _Sites(TorchFunctionMode):
    def __init__(self, stack, found):
        super().__init__()
        self.stack, self.found = stack, found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear:
            self.found.append(self.stack.site("linear").path)
        return func(*args, **(kwargs or {}))


class TwoNames(nn.Module):
    """Its layers are registered alone and in a sequence."""

    def __init__(self, found):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.all = nn.Sequential(self.a, self.b, self.b)
        self.found = found

    def forward(self, x):
        with CallStack(self) as stack, _Sites(stack, self.found):
            return self.all(x)


def test_a_module_with_two_names_has_one_site_also_in_an_export():
    found = []
    model, inputs = TwoNames(found).eval(), torch.ones(2, 3)
    model(inputs)
    plain, found[:] = list(found), []
    torch.export.export(model, (inputs,), strict=False)
    assert plain == ["all > a", "all > b > b.0", "all > b#1 > b.0"]
    assert found[-3:] == plain


class Summed(nn.Module):
    """Calls its layers from a generator that a builtin function runs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(3))

    def forward(self, x):
        return sum(layer(x) for layer in self.layers)


def test_places_stay_when_python_specializes_the_code_of_a_model():
    model, inputs = Summed(), torch.ones(2, 3)

    def places():
        learnt = Places()
        with CallStack(model, learnt=learnt) as stack:
            model(inputs)
            stack.finish()
        return learnt.modules

    first = places()
    assert len(first) == 9
    for _ in range(30):
        assert places() == first
