"""`compressbench doctor`: whether the machine, libraries and servers are as a run needs them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressbench import __version__
from compressbench.cli.checks.finding import BROKEN, FINE, MARKS, Finding
from compressbench.cli.checks.processes import run_checks
from compressbench.config.groups import config_folders
from compressbench.core.redact import redact

SECONDS = 13.0  # for all checks; what has no answer by then is a finding
_GROUPS = {  # check -> heading
    "config": "config",
    "libraries": "libraries",
    "torch_build": "PyTorch",
    "variables": "environment variables",
    "machine": "machine",
    "kernels": "integer kernels",
    "folders": "folders",
    "store": "store",
    "tracking": "tracking",
    "storage": "sweeps",
}
_WIDTH = 18


def main(argv: Sequence[str]) -> int:
    """Print what was found; return 0, 1 if something is broken, 2 for wrong usage."""
    parser = _parser()
    try:
        options = parser.parse_intermixed_args(argv)
        for word in options.overrides:
            if "=" not in word and not word.startswith("~"):
                parser.error(f"{word!r} is not a setting NAME=VALUE")
    except SystemExit as stop:  # argparse has printed the help or an error
        return int(stop.code or 0)
    started = time.monotonic()
    groups = _examine(options.overrides, options.config_dir, started + SECONDS)
    document = _document(groups, time.monotonic() - started)
    text = json.dumps(document, indent=1) if options.json else _page(document)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # paths may hold any letter
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 1 if document["mark"] == BROKEN else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compressbench doctor",
        description="Check versions, kernels, disks, the store, tracking and the storage of sweeps"
        " for a run with these settings. Nothing is changed.",
        epilog="Exit code 0, or 1 if something is broken.",
    )
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="as of a run or sweep")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--config-dir", "-cd", action="append", default=[], metavar="DIR",
                        help="your own YAML groups")  # fmt: skip
    parser.add_argument("--multirun", "-m", action="store_true", help="accepted, and ignored")
    return parser


def _examine(
    overrides: Sequence[str], own: Sequence[str], end: float
) -> dict[str, Sequence[Finding]]:
    """The findings of each check: the config first, since it says what to look at."""
    folders = config_folders([f"--config-dir={folder}" for folder in own])
    settings = _defaults() | {"overrides": list(overrides), "folders": list(map(str, folders))}
    first, *rest = _GROUPS
    found = run_checks([first], settings, end)
    for finding in found[first]:
        settings |= finding.settings
    return {**found, **run_checks(rest, settings, end)}


def _defaults() -> dict[str, Any]:
    """What is looked at where the config cannot be composed: that of conf/config.yaml."""
    tracking = {"_target_": "compressbench.tracking.trackers.Local", "folder": str(Path.cwd())}
    trainer = {"accelerator": "auto", "devices": 1, "precision": "32-true", "threads": None,
               "max_batches": None}  # fmt: skip
    return {"runs": "runs", "sweeps": "sweeps", "storage": None, "tracking": tracking,
            "trainer": trainer}  # fmt: skip


def _document(groups: Mapping[str, Sequence[Finding]], seconds: float) -> dict[str, Any]:
    """What --json prints; docs/operations.md describes it."""
    checks = [
        {"check": name, **asdict(finding)} for name, found in groups.items() for finding in found
    ]
    for check in checks:
        del check["settings"]
    worst = max((check["mark"] for check in checks), key=MARKS.index, default=FINE)
    return {
        "version": 1,
        "compressbench": __version__,
        "mark": worst,
        "seconds": round(seconds, 1),
        "checks": redact(checks),
    }


def _page(document: Mapping[str, Any]) -> str:
    """A table, with the remedy under each line that is not fine."""
    lines, heading = [], ""
    for check in document["checks"]:
        if heading != _GROUPS[check["check"]]:
            heading = _GROUPS[check["check"]]
            lines.append(heading)
        lines.append(f"  {check['mark']:6}  {check['subject']:{_WIDTH}}  {check['found']}")
        if check["fix"]:
            lines.append(f"{'':{_WIDTH + 12}}-> {check['fix']}")
    counts = [sum(check["mark"] == mark for check in document["checks"]) for mark in MARKS]
    total = ", ".join(f"{count} {mark}" for count, mark in zip(counts, MARKS, strict=True))
    return "\n".join([*lines, f"{total}, in {document['seconds']} s"])
