"""What CI makes of a report of pip-audit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.end_to_end.running import ROOT

FIXED = {"id": "GHSA-aaaa", "aliases": ["CVE-2026-1"], "fix_versions": ["1.2.4"]}
NOT_FIXED = {"id": "GHSA-bbbb", "aliases": [], "fix_versions": []}
EXCEPTION = '[CVE-2026-1]\nreason = "only the server is affected"\nuntil = {}\n'


def judged(folder, report, exceptions=""):
    """Exit code and output."""
    if report is not None:
        (folder / "audit.json").write_text(json.dumps({"dependencies": report, "fixes": []}))
    (folder / "audit.log").write_text("Traceback\nConnectionError: cannot resolve pypi.org\n")
    (folder / "exceptions.toml").write_text(exceptions)
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "judge_audit.py", folder, folder / "exceptions.toml"],
        capture_output=True, text=True, check=False, env={},
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


def library(*vulnerabilities):
    return {"name": "some", "version": "1.2.3", "vulns": list(vulnerabilities)}


@pytest.mark.parametrize(
    ("found", "exceptions", "code", "line"),
    [
        ([], "", 0, "audit: 1 libraries, 0 to be updated"),
        ([FIXED], "", 1, "audit: some 1.2.3: GHSA-aaaa is fixed in 1.2.4"),
        ([NOT_FIXED], "", 0, "audit: no version fixes: some 1.2.3: GHSA-bbbb"),
        ([FIXED], EXCEPTION.format("2999-01-01"), 0, "is allowed: only the server is affected"),
        ([FIXED], EXCEPTION.format("2020-01-01"), 1, "is fixed in 1.2.4"),
        ([], EXCEPTION.format("2999-01-01"), 0, "an exception is no longer needed: CVE-2026-1"),
    ],
)
def test_what_has_a_fix_fails_unless_an_exception_says_why(
    tmp_path, found, exceptions, code, line
):  # fmt: skip
    returned, out = judged(tmp_path, [library(*found)], exceptions)
    assert (returned, line in out) == (code, True), out


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (None, "cannot resolve pypi.org"),
        ([{"name": "some", "skip_reason": "Dependency not found on PyPI"}], "not found on PyPI"),
    ],
    ids=["no service", "nothing found there"],
)
def test_what_could_not_be_looked_up_is_said_and_does_not_count_as_safe(tmp_path, report, reason):
    code, out = judged(tmp_path, report)
    assert code == 0
    assert out.startswith("audit: skipped, since vulnerabilities cannot be looked up here: ")
    assert reason in out
    assert "to be updated" not in out
    code, out = judged(tmp_path, [library(), *(report or [])])
    assert ("audit: not looked up: some" in out) is (report is not None)


def test_the_exceptions_of_this_repository_can_be_read(tmp_path):
    (tmp_path / "audit.json").write_text(json.dumps({"dependencies": [library()], "fixes": []}))
    judge = [sys.executable, ROOT / ".ci" / "judge_audit.py", tmp_path]
    assert subprocess.run(judge, check=False).returncode == 0
