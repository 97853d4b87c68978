"""What a run folder holds, for those who read it again."""

from __future__ import annotations

import json
from pathlib import Path

from compressbench.core.errors import UserError
from compressbench.results.run_report import Report

MODEL, ARTIFACT, REPORT = "model.onnx", "artifact", "report.json"


def read_report(folder: Path) -> Report:
    """`report.json` of a finished run. Raises UserError for a folder that has none."""
    path = folder / REPORT
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} is not a run folder: {REPORT}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if report.get("status") != "finished" or not (folder / MODEL).is_file():
        raise UserError(f"{folder}: the run is {report.get('status')}, it has no {MODEL}")
    return report
