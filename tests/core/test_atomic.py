"""Writes that end too early: by an error, a kill, a limit on the size of files."""

import json
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from compressbench.core.atomic import atomic_path, write_json_atomic, write_text_atomic

PRELUDE = """
import os, resource, signal, sys
from pathlib import Path
from compressbench.core.atomic import write_bytes_atomic
path = Path(sys.argv[1])
"""


def python(body, *arguments):
    code = PRELUDE + textwrap.dedent(body)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    write_json_atomic(path, {"old": "größe"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"new": float("inf")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": "größe"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "kept"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_stood_there_is_kept_where_asked(tmp_path):
    path, previous = tmp_path / "kept", tmp_path / "kept.previous"
    for text in ("first", "second", "third"):
        with atomic_path(path, previous) as temporary:
            temporary.write_text(text)
    assert (path.read_text(), previous.read_text()) == ("third", "second")


KILLED = """
left = int(sys.argv[2])
def counted(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
import io
for name in ("fsync", "replace", "open", "close", "write"):
    setattr(os, name, counted(getattr(os, name)))
io.open = counted(io.open)  # what Path.write_bytes calls
Path.replace = counted(Path.replace)
write_bytes_atomic(path, b"n" * 100_000)
"""


def test_killed_at_every_step(tmp_path):
    """The old file or the whole new one, wherever the kill falls."""
    kills = 0
    for step in range(20):
        path = tmp_path / f"{step}.bin"
        path.write_bytes(b"o" * 100_000)
        done = python(KILLED, path, step)
        content = path.read_bytes()
        assert content in (b"o" * 100_000, b"n" * 100_000)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    assert done.returncode == 0
    assert kills >= 4  # before the file is opened, synced, closed, renamed


LIMITED = """
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_bytes_atomic(path, b"n" * 100_000)
except OSError as error:
    print(error.strerror)
"""


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")
    line = python(LIMITED, path).stdout
    assert f"{path}: larger than this process may write (ulimit -f): 100000 bytes needed" in line
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_of_several_writers_at_once_one_is_whole(tmp_path):
    path = tmp_path / "shared"
    texts = [letter * 50_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text_atomic(path, text), texts * 5))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
