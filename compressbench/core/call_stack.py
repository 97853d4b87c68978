"""Names the calls of a forward pass by the module that makes them.

A site is a path of module calls, a function, and the index of its call among those that the last
module makes itself. So a call added in one module moves no site of another.

Training may make more calls than evaluation (stochastic depth, auxiliary heads) or fewer (skipped
blocks), also within a module. There a call is recognized by its place: the places in the text of
the module's code that lead to it, and the module called before it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import CodeType, FrameType
from typing import Any, NamedTuple, Self

from torch import nn

from compressbench.core.errors import CheckFailedError

_MODULE_CALL = nn.Module._call_impl.__code__


@dataclass(frozen=True)
class Site:
    """A call of `function`: the `index`-th that the module call at `path` makes itself."""

    path: str  # such as "blocks.1 > blocks.1.act#1", "#1" marking a second call; "" for the model
    function: str
    index: int


class Place(NamedTuple):
    """A call by where it is made: `number` counts the calls of a `group` within `parent`."""

    parent: Place | None
    group: Hashable
    number: int


@dataclass
class Places:
    """The places of the sites of a model, from one pass in evaluation mode.

    `sites` maps places to numbers of sites, `modules` are the places of module calls, and `counts`
    is the number of calls in each group that leads to a site.
    """

    sites: dict[Place, int] = field(default_factory=dict)
    modules: set[Place] = field(default_factory=set)
    counts: dict[tuple[Place | None, Hashable], int] = field(default_factory=dict)

    def settle_(self) -> None:
        """Forget the counts of groups that lead to no site."""
        leading = set()
        for place in self.sites:
            step: Place | None = place
            while step is not None:
                leading.add((step.parent, step.group))
                step = step.parent
        self.counts = {group: n for group, n in self.counts.items() if group in leading}


@dataclass
class _Frame:
    """A running call of a module."""

    path: str
    layer: str
    place: Place | None
    counts: Counter[str] = field(default_factory=Counter)
    groups: Counter[Hashable] = field(default_factory=Counter)
    before: Hashable = None  # the module called last, of those that evaluation calls


class CallStack:
    """The running module calls of `model`; use as `with CallStack(model) as stack:`.

    Args:
        model: Its submodules get hooks within the block.
        skip: Name of a child of the model that is left out.
        learnt: Filled with the places of one pass in evaluation mode.
        known: What `learnt` was filled with: places are compared with it.
    """

    def __init__(
        self,
        model: nn.Module,
        skip: str | None = None,
        learnt: Places | None = None,
        known: Places | None = None,
    ) -> None:
        self.model, self.skip, self.learnt, self.known = model, skip, learnt, known
        self.frames = [_Frame("", "", None)]
        self._handles: list[Any] = []

    @property
    def locates(self) -> bool:
        """Whether places are learnt or compared."""
        return self.learnt is not None or self.known is not None

    @property
    def layer(self) -> str:
        """The name of the running module, "" for the model itself."""
        return self.frames[-1].layer

    def __enter__(self) -> Self:
        seen = {id(vars(self.model))}  # under torch.export, each name of a module is an object
        for name, module in self.model.named_modules():
            if id(vars(module)) not in seen and name.partition(".")[0] != self.skip:
                seen.add(id(vars(module)))
                self._handles += [
                    module.register_forward_pre_hook(partial(self._push, name)),
                    module.register_forward_hook(self._pop),
                ]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def site(self, function: str) -> Site:
        """Count a call of `function` and return its site."""
        frame = self.frames[-1]
        index = frame.counts[function]
        frame.counts[function] += 1
        return Site(frame.path, function, index)

    def place(self, function: str) -> Place:
        """Count a call of `function` at its place, and return that."""
        frame = self.frames[-1]
        return _counted(frame, (function, _location(modules=0), frame.before))

    def finish(self) -> None:
        """End the call of the model. Raises CheckFailedError if places cannot be told apart."""
        self._close(self.frames.pop())

    def _push(self, name: str, module: nn.Module, args: Any) -> None:
        frame = self.frames[-1]
        index = frame.counts[f"module {name}"]
        frame.counts[f"module {name}"] += 1
        here = name if not index else f"{name}#{index}"
        path = f"{frame.path} > {here}" if frame.path else here
        place = None
        if self.locates:
            place = _counted(frame, (f"module {name}", _location(modules=1)))
            if self.learnt is not None:
                self.learnt.modules.add(place)
            if self.known is None or place in self.known.modules:
                frame.before = (place.group, place.number)
        self.frames.append(_Frame(path, name, place))

    def _pop(self, module: nn.Module, args: Any, output: Any) -> None:
        self._close(self.frames.pop())

    def _close(self, frame: _Frame) -> None:
        if self.learnt is not None:
            self.learnt.counts.update({(frame.place, g): n for g, n in frame.groups.items()})
        if self.known is None:
            return
        for group, made in frame.groups.items():
            expected = self.known.counts.get((frame.place, group), made)
            if made != expected:
                raise CheckFailedError(_differ(frame, group, made, expected))


def _differ(frame: _Frame, group: Any, made: int, expected: int) -> str:
    where = frame.layer or "the model"
    return (
        f"{where} calls {group[0]} {made} times in training where it calls it {expected} times in "
        "evaluation, so its activations cannot be told apart"
    )


def _counted(frame: _Frame, group: Hashable) -> Place:
    number = frame.groups[group]
    frame.groups[group] += 1
    return Place(frame.place, group, number)


def _location(modules: int) -> tuple[Hashable, ...]:
    """The code that leads from the running module to a call: file, first line and position in the
    text of each function. `modules` are the innermost module calls to leave out.

    Positions stay when Python replaces instructions by faster ones, as it does after a few calls.
    """
    steps: list[Hashable] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code is _MODULE_CALL:
            if not modules:
                break
            modules, steps = modules - 1, []
        else:
            position = _positions(code)[frame.f_lasti // 2]
            steps.append((code.co_filename, code.co_firstlineno, position))
        frame = frame.f_back
    return tuple(steps)


@lru_cache(maxsize=1024)
def _positions(code: CodeType) -> list[Hashable]:
    """Where in the text each instruction comes from: lines and columns."""
    return list(code.co_positions())
