"""Judges the report of pip-audit in a folder: python .ci/judge_audit.py FOLDER [EXCEPTIONS].

A vulnerability that a newer version fixes fails, unless the file of exceptions names it with a
reason and a date that has not passed. What could not be looked up is said.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main(folder: Path, exceptions: Path) -> int:
    report, log = folder / "audit.json", folder / "audit.log"
    allowed = tomllib.loads(exceptions.read_text())
    dependencies = json.loads(report.read_text())["dependencies"] if report.exists() else []
    known = [d for d in dependencies if "skip_reason" not in d]
    if not known:
        last = log.read_text().strip().rpartition("\n")[2] if log.exists() else ""
        reason = last if not dependencies else dependencies[0]["skip_reason"]
        _say("skipped, since vulnerabilities cannot be looked up here", reason)
        return 0
    if missing := [d["name"] for d in dependencies if d not in known]:
        _say("not looked up", ", ".join(missing))
    failures = list(_failures(known, allowed))
    print(f"audit: {len(known)} libraries, {len(failures)} to be updated")
    return 1 if failures else 0


def _failures(known: list[dict[str, Any]], allowed: dict[str, Any]) -> Iterator[str]:
    """The vulnerabilities that fail; all are printed."""
    today, unused = datetime.datetime.now(datetime.UTC).date(), set(allowed)
    for library in known:
        for found in library["vulns"]:
            names = {found["id"], *found["aliases"]} & set(allowed)
            unused -= names
            exception = allowed[min(names)] if names else None
            place = f"{library['name']} {library['version']}: {found['id']}"
            if exception and today <= exception["until"]:
                print(f"audit: {place} is allowed: {exception['reason']}")
            elif not found["fix_versions"]:
                _say("no version fixes", place)
            else:
                print(f"audit: {place} is fixed in {', '.join(found['fix_versions'])}")
                yield found["id"]
    for name in sorted(unused):
        _say("an exception is no longer needed", name)


def _say(what: str, which: str) -> None:
    mark = "::warning::" if os.environ.get("GITHUB_ACTIONS") else ""
    print(f"{mark}audit: {what}: {which[:500]}")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    sys.exit(main(given[0], given[1] if len(given) > 1 else HERE / "vulnerabilities.toml"))
