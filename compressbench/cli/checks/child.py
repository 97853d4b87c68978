"""The process of one check: settings as JSON on standard input, one JSON line per finding.

A library may print, hang or end the process: all that is found before has left it by then.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
from types import FrameType

END = "end"  # the last line of a check that came to its end


def main(check: str) -> None:
    """Run the check of the module `check` of this package."""
    signal.signal(signal.SIGTERM, _end)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        settings = json.load(sys.stdin)
        module = importlib.import_module(f"compressbench.cli.checks.{check}")
        for finding in module.check(settings):
            print(json.dumps(dataclasses.asdict(finding)), file=answers, flush=True)
        print(END, file=answers, flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    """End as after an exception, so that temporary files are removed."""
    raise SystemExit(128 + number)
