"""Removes passwords and tokens from reports, logs and tracking."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAMES = {"password", "passwd", "token", "access_token", "secret", "api_key", "secret_key"}
_USER_IN_URL = re.compile(r"(?<=://)[^/\s?#]*@")
_SECRET_IN_QUERY = re.compile(
    rf"(?i)([?&;](?:{'|'.join(sorted(_SECRET_NAMES))}|sig|signature)=)[^&;\s]+"
)


def redact(value: Any) -> Any:
    """A copy of plain JSON with credentials in URLs and secret settings replaced by `***`."""
    if isinstance(value, str):
        return _SECRET_IN_QUERY.sub(rf"\1{HIDDEN}", _USER_IN_URL.sub(f"{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {k: HIDDEN if _is_secret(k, v) else redact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value


def _is_secret(name: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and str(name).lower() in _SECRET_NAMES
