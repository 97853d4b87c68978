"""The judge objects to models that are wrong."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from compressbench.core.edits import apply_edit_
from compressbench.core.types import TRAINED, Artifact
from tests.zoo.compaction import compaction_problems, redraw_


class Net(nn.Module):
    """`uses`: whether a channel is used outside of layers, too."""

    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.uses = uses
        self.a, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.b, self.fc = nn.Conv2d(12, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        y = self.b(x).relu()
        y = y * x.mean(1, keepdim=True).sigmoid() if self.uses else y
        return self.fc(y.mean((2, 3)))


def cut(net: Net, gone: list[int], said: list[int]) -> tuple[Artifact, Artifact]:
    """The net before and after it lost channels of `a`, of which `said` are told."""
    torch.manual_seed(0)
    redraw_(net)
    start = Artifact(net.eval(), {}, (), frozenset({TRAINED}))
    left = [i for i in range(12) if i not in gone]
    small, sizes = deepcopy(net), {}
    state = net.state_dict()
    for name, value in state.items():
        if name.startswith(("a.", "norm.")) and value.ndim:
            state[name] = value[left]
        elif name == "b.weight":
            state[name] = value[:, left]
        sizes[name] = list(state[name].shape)
    attributes = {"norm": {"num_features": len(left)}, "a": {"out_channels": len(left)},
                  "b": {"in_channels": len(left)}}  # fmt: skip
    sides = {"a": {"out": said}, "norm": {"out": said, "in": said}, "b": {"in": said}}
    edit = {"kind": "resize", "tensors": sizes, "attributes": attributes, "removed": sides}
    apply_edit_(small, edit)
    small.load_state_dict(state)
    return start, Artifact(small.eval(), {}, (edit,), frozenset({TRAINED}))


def objections(*artifacts: Artifact) -> list[str]:
    inputs = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return [*compaction_problems(*artifacts, (), inputs)]


def test_channels_that_only_layers_read_can_go():
    assert objections(*cut(Net(False), [1, 2, 4, 6, 7, 9], [1, 2, 4, 6, 7, 9])) == []


@pytest.mark.parametrize(
    ("uses", "gone", "said", "problem"),
    [
        (True, [1, 2, 4, 6, 7, 9], [1, 2, 4, 6, 7, 9], "outputs differ"),
        (False, [1, 2, 4, 6, 7, 9], [1, 2, 4, 6, 7, 8], "no slice"),
        (False, [*range(10)], [*range(10)], "half was asked for"),
        (False, [1, 2, 4, 6, 7, 9], [1, 2, 4, 6, 7], "its channels leave"),
    ],
)
def test_what_is_wrong_is_named(uses, gone, said, problem):
    found = objections(*cut(Net(uses), gone, said))
    assert any(problem in text for text in found), found


class Scaled(nn.Module):
    """A factor for each channel, of no layer; some factors are equal, as of channels that training
    left alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(1, 12, 3, padding=1), nn.Linear(12, 10)
        self.scale = nn.Parameter(torch.ones(12, 1, 1))

    def forward(self, x):
        return self.fc((self.scale * self.a(x)).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("factors", "problems"),
    [([0, 3, 5, 8, 10, 11], []), ([0, 3, 5, 8, 10, 9], ["outputs differ"])],
)
def test_equal_values_stand_for_each_other_and_other_values_do_not(factors, problems):
    left, gone = [0, 3, 5, 8, 10, 11], [1, 2, 4, 6, 7, 9]
    torch.manual_seed(0)
    net = Scaled().eval()
    redraw_(net)
    net.scale.data[[1, 3, 5, 8]] = 0.7
    state = net.state_dict()
    parts = {
        "a.weight": state["a.weight"][left], "a.bias": state["a.bias"][left],
        "fc.weight": state["fc.weight"][:, left], "scale": state["scale"][factors],
    }  # fmt: skip
    edit = {
        "kind": "resize", "tensors": {name: list(part.shape) for name, part in parts.items()},
        "attributes": {"a": {"out_channels": 6}, "fc": {"in_features": 6}},
        "removed": {"a": {"out": gone}, "fc": {"in": gone}},
    }  # fmt: skip
    small = deepcopy(net)
    apply_edit_(small, edit)
    small.load_state_dict({**state, **parts})
    found = objections(
        Artifact(net, {}, (), frozenset({TRAINED})),
        Artifact(small, {}, (edit,), frozenset({TRAINED})),
    )
    assert [" ".join(text.split()[:2]) for text in found] == problems, found
