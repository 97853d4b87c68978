"""Keeps what a long computation has finished, so that it goes on from there when it was killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from compressbench.core.digests import digest
from compressbench.core.distributed import kept_by_all_ranks, rank
from compressbench.core.records import Records, encoded, read_one

T = TypeVar("T")

FILE = "finished"  # name of the file, followed by the rank
SAVE_SECONDS = 2.0  # between two states of a pass
LONGEST_SECONDS = 5.0  # likewise, for a state so large that writing it takes notable time
BYTES_PER_SECOND = 5e6  # of a state; a hundredth of what is hashed and written in a second
LARGE_BYTES = 2**20  # of states that are not kept to the end
LEAST_SECONDS = 0.2  # what took less is computed again


@runtime_checkable
class HasState(Protocol):
    """What a pass changes, if it is not a dict of tensors; as an optimizer of PyTorch."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Journal:
    """Finished units of work in a folder; the default keeps nothing.

    `within` names what units depend on, so the value of a unit is never taken for that of another.
    Values are None, booleans, numbers, texts and tensors in lists and dicts. Where they are read
    again, tensors are on the CPU and tuples are lists.
    """

    def __init__(
        self, folder: Path | None = None, device: torch.device | None = None, scope: str = ""
    ) -> None:
        self._folder, self._device, self._scope = folder, device, scope
        self._records: Records | None = None
        self._before: set[str] = set()
        self._passes: list[Path] = []  # files of the states of passes

    @classmethod
    def open(cls, folder: Path, device: torch.device | None = None) -> Journal:
        """The journal in `folder`, of this rank; what other ranks do not have counts as unfinished.

        All ranks must call this together.
        """
        journal = cls(folder, device)
        journal._records = Records(folder / f"{FILE}-{rank()}")
        known = journal._records.places
        journal._before = kept_by_all_ranks(set(known))
        for name in set(known) - journal._before:
            del known[name]
        return journal

    def within(self, *parts: str | Tensor) -> Journal:
        """The same journal for units that depend on `parts`."""
        if self._records is None:
            return self
        inner = Journal(self._folder, self._device, digest([self._scope, "|", *parts]))
        inner._records, inner._before, inner._passes = self._records, self._before, self._passes
        return inner

    def once(
        self, unit: str, compute: Callable[[], T], generator: torch.Generator | None = None
    ) -> T:
        """The value of `compute()`, or what it was when an earlier process finished this unit.

        `generator`, from which `compute` draws, is then put to where the unit left it.
        """
        if self._records is None:
            return compute()
        name = f"{self._scope}/{unit}"
        if (found := self._records.read(name)) is not None:
            value, state = found
            if generator is not None:
                generator.set_state(state)
            return value  # type: ignore[no-any-return]
        passes = len(self._passes)
        result = compute()
        self._records.append(name, [result, None if generator is None else generator.get_state()])
        self._forget(passes)
        return result

    def _forget(self, first: int) -> None:
        """Delete the large states of passes that belong to a finished unit."""
        for path in self._passes[first:]:
            if path.exists() and path.stat().st_size > LARGE_BYTES:
                path.unlink()
        del self._passes[first:]

    def over(self, unit: str, items: Iterable[T], state: dict[str, Any] | HasState) -> Iterator[T]:
        """Yield the `items` that are not done yet; for each, the loop changes `state`.

        From time to time the state is saved. After a kill it is what it was then, and the items
        before that are skipped. The loop must change nothing else, and not wait for other ranks.
        """
        if self._folder is None:
            yield from items
            return
        path = self._folder / f"pass-{rank()}-{digest([self._scope, '/', unit])}"
        self._passes.append(path)
        done = kept = _resume(path, state, self._device)
        saved = time.monotonic()
        for item in islice(items, done, None):
            yield item
            done += 1
            if _due(state, time.monotonic() - saved):
                _save(path, done, state)
                kept, saved = done, time.monotonic()
        if done > kept and _worth(state, time.monotonic() - saved):
            _save(path, done, state)

    def rows(self, unit: str, items: Iterable[T], compute: Callable[[T], Tensor]) -> list[Tensor]:
        """`compute(item)` of all items, kept about once a second."""
        done = self._stretches(unit)
        begun, since = len(done), time.monotonic()
        for item in islice(items, begun, None):
            done.append(compute(item))
            if time.monotonic() - since >= SAVE_SECONDS / 2:
                self._keep_rows(unit, done, begun)
                begun, since = len(done), time.monotonic()
        if time.monotonic() - since >= LEAST_SECONDS:
            self._keep_rows(unit, done, begun)
        return done

    def _stretches(self, unit: str) -> list[Tensor]:
        done: list[Tensor] = []
        while self._records is not None:
            found = self._records.read(f"{self._scope}/{unit}/{len(done)}")
            if found is None:
                break
            done += found
        return done

    def _keep_rows(self, unit: str, done: list[Tensor], begun: int) -> None:
        if self._records is not None and len(done) > begun:
            self._records.append(f"{self._scope}/{unit}/{begun}", done[begun:])

    def before(self, units: int) -> str:
        """For a line of progress: how many of `units` an earlier process had finished."""
        count = sum(name.startswith(f"{self._scope}/") for name in self._before)
        return f", of which {count} of {units} were measured before" if count else ""


def _due(state: dict[str, Any] | HasState, seconds: float) -> bool:
    if seconds < SAVE_SECONDS:
        return False
    return seconds >= LONGEST_SECONDS or _worth(state, seconds)


def _worth(state: dict[str, Any] | HasState, seconds: float) -> bool:
    """Whether writing the state takes less than a hundredth of these seconds."""
    return seconds >= min(LEAST_SECONDS, SAVE_SECONDS) and (
        _nbytes(_contents(state)) <= BYTES_PER_SECOND * seconds
    )


def _contents(state: dict[str, Any] | HasState) -> dict[str, Any]:
    return state if isinstance(state, dict) else state.state_dict()


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    return sum(map(_nbytes, value)) if isinstance(value, (list, tuple)) else 0


def _save(path: Path, done: int, state: dict[str, Any] | HasState) -> None:
    """Replace the saved state; without one, more is computed again, so a full disk is no error."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(encoded(path.name, [done, _contents(state)]))
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _resume(path: Path, state: dict[str, Any] | HasState, device: torch.device | None) -> int:
    """Put `state` to what was saved; return the number of items done."""
    found = read_one(path, path.name)
    if found is None:
        return 0
    done, kept = found
    if not isinstance(state, dict):
        state.load_state_dict(kept)
        return int(done)
    with torch.no_grad():
        for name, value in kept.items():
            if isinstance(state.get(name), Tensor):
                state[name].copy_(value)
            else:
                state[name] = value.to(device) if isinstance(value, Tensor) else value
    return int(done)
