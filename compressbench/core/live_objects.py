"""Objects of a Python caller that a config refers to by digest, while the call lasts.

A config is plain JSON, so a module or dataset that exists only in the calling program appears in it
as a digest. During the call, code that is built from the config looks up the object here. Processes
and threads started in the meantime do not see it.
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
    """Make `objects` (digest -> object) available to `live_object` within the block."""
    token = _live.set({**_live.get(), **objects})
    try:
        yield
    finally:
        _live.reset(token)


def live_types() -> list[str]:
    """The types of the live objects, as `module.qualname`; a config may become any of them."""
    return [f"{type(o).__module__}.{type(o).__qualname__}" for o in _live.get().values()]


def live_object(digest: str) -> Any:
    """The live object with that digest, or None."""
    return _live.get().get(digest)
