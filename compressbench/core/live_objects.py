"""Objects of a Python caller that a config names by a digest, for as long as the call lasts.

A config is plain JSON, so a module or a dataset that exists only in the calling program stands in
it as a digest. While the call runs, what is built from the config finds the object here. Processes
and threads that start in between do not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

_live: ContextVar[Mapping[str, Any]] = ContextVar("live", default=MappingProxyType({}))


@contextmanager
def live_objects(objects: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, `live_object` finds `objects` under their digests."""
    token = _live.set({**_live.get(), **objects})
    try:
        yield
    finally:
        _live.reset(token)


def live_types() -> list[str]:
    """The types of the objects, as `module.qualname`: what a config may turn into, for now."""
    return [f"{type(o).__module__}.{type(o).__qualname__}" for o in _live.get().values()]


def live_object(digest: str) -> Any:
    """The object of that digest; None where no caller has one."""
    return _live.get().get(digest)
