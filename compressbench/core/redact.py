"""Removes passwords and tokens from every text that leaves a process: files, logs, tracking.

What is removed: credentials in URLs and in `user:password@host`, values of settings with names such
as `password`, `api_key` or `hub_token`, `Authorization` headers, tokens of a well-known shape, and
the values of environment variables whose names look like secrets.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

HIDDEN = "***"
_NAME = (
    r"(?:[\w.-]*(?:password|passwd|passphrase|pgpass|secret|credentials?)"
    r"|(?:[\w.-]*[_.-])?(?:token|apikey|pwd)|[\w.-]*[_-]key|authorization)"
)
_NOT_SECRET = re.compile(  # special tokens of tokenizers and models; keys that are names
    r"(?i)(?:.*[_.-])?(?:(?:pad|cls|bos|eos|sep|mask|unk|class|dist|image|reg)_token"
    r"|(?:content|stage|parent|metric|full|sort|cache|primary|foreign|public)_key)"
)
_SECRET_NAME = re.compile(rf"(?i){_NAME}")
_SECRET_VARIABLE = re.compile(
    r"(?i)TOKEN(?!IZ)|PASS(?:WORD|WD|PHRASE)|PGPASS|SECRET|KEY|CREDENTIAL|COOKIE|^AWS_|_PASS$|_PWD$"
)
_PASS = re.compile(r"(?i)pass|pwd|secret")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s&;,"'}\])]+)"""
_SHAPES = (
    # scheme://user:password@host, also where the password has a slash
    (
        re.compile(r"(:/{1,2})(?:[^/\s?#'\"]*|[^/\s@:'\"]+:(?!\d+[/?#])[^\s@'\"]*)@"),
        rf"\g<1>{HIDDEN}@",
    ),
    # user:password@host
    (re.compile(r"(?<![\w:/@.*%+-])[\w.%+-]+:[^\s:@/'\"{}\[\](),]+@(?=[\w\[])"), f"{HIDDEN}@"),
    (
        re.compile(r"(?i)([?&;](?:sig|signature|x-amz-[\w-]*(?:signature|credential))=)[^&;\s]+"),
        rf"\g<1>{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\g<1> {HIDDEN}"),
    (
        re.compile(
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[opsur]_\w{20,}|\bhf_[A-Za-z0-9]{20,}"
            r"|\bdapi[0-9a-f]{32}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"
        ),
        HIDDEN,
    ),
)
_SETTING = re.compile(rf"(?i)(?<![\w.-])({_NAME})(\s*=\s*|[\"']\s*:\s*|:\s+)({_VALUE})")
_HINT = re.compile(r"(?i)[@=:?]|bearer|basic|AKIA|ASIA|gh[opsur]_|hf_|dapi|eyJ")
_SHORTEST = 8  # a shorter value of a variable may be an ordinary word


def names_a_secret(variable: str) -> bool:
    """Whether an environment variable of that name probably holds a secret."""
    return bool(_SECRET_VARIABLE.search(variable))


def redact(value: Any) -> Any:
    """A copy of plain JSON with secrets replaced by `***`."""
    return _redacted(value, _values())


def _redacted(value: Any, known: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        return _clean(value, known)
    if isinstance(value, Mapping):
        return {
            _redacted(k, known): HIDDEN if _hides(k, v) else _redacted(v, known)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_redacted(item, known) for item in value]
    return value


def _clean(text: str, known: re.Pattern[str] | None) -> str:
    if known is not None:
        text = known.sub(HIDDEN, text)
    if not _HINT.search(text):
        return text
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return _SETTING.sub(_hide, text)


def _hide(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    if not _is_secret(name) or value.strip("\"'") in ("null", "None", "true", "false", ""):
        return match.group()
    quote = value[0] if value[0] in "\"'" else ""
    return f"{name}{between}{quote}{HIDDEN}{quote}"


def _hides(name: Any, value: Any) -> bool:
    """Whether a setting is a secret; one that is not set is none, and a number seldom."""
    if not isinstance(name, str) or not value or isinstance(value, (bool, Mapping)):
        return False
    return _is_secret(name) and (not isinstance(value, (int, float)) or bool(_PASS.search(name)))


def _is_secret(name: str) -> bool:
    plain = _CAMEL.sub("_", name)
    return bool(_SECRET_NAME.fullmatch(plain)) and not _NOT_SECRET.fullmatch(plain)


def _values() -> re.Pattern[str] | None:
    """The secrets in the environment, as one pattern, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if names_a_secret(name) and len(value) >= _SHORTEST and "/" not in value[:1]
    }
    longest_first = sorted(found, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if found else None


class _Redacted:
    """A text stream to which everything is written through `redact`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def redacted_output() -> Iterator[None]:
    """Redact what this process prints within the block."""
    out, err = (cast(TextIO, _Redacted(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield
