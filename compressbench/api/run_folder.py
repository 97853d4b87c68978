"""What a run folder holds, for those who read it again."""

from __future__ import annotations

from pathlib import Path

from compressbench.core.errors import UserError
from compressbench.results.report_file import check_shipped, read_report
from compressbench.results.run_report import Report

MODEL, ARTIFACT = "model.onnx", "artifact"


def finished_report(folder: Path) -> Report:
    """`report.json` of a finished run. Raises UserError for a folder that has none, and
    CheckFailedError if its model.onnx is not the file that was measured.
    """
    report = read_report(folder)
    if report.get("status") != "finished" or not (folder / MODEL).is_file():
        raise UserError(f"{folder}: the run is {report.get('status')}, it has no {MODEL}")
    check_shipped(folder, report)
    return report
