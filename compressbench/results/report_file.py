"""Reads and writes `report.json`, and checks that `model.onnx` is the file that it is about."""

from __future__ import annotations

from pathlib import Path

from compressbench.core.atomic import write_bytes_atomic
from compressbench.core.checked_files import (
    DamagedFileError,
    json_with_digest,
    read_json_with_digest,
)
from compressbench.core.digests import file_digest
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.results.run_report import Report

REPORT_FILE, MODEL_FILE = "report.json", "model.onnx"


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.json` with its digest, and return its path."""
    path = folder / REPORT_FILE
    write_bytes_atomic(path, json_with_digest(report, indent=1))
    return path


def read_report(folder: Path) -> Report:
    """The report of a run folder. Raises UserError where there is none, or another than written."""
    path = folder / REPORT_FILE
    try:
        return read_json_with_digest(path)
    except FileNotFoundError:
        raise UserError(f"{folder}: no {REPORT_FILE} there, so not the folder of a run") from None
    except DamagedFileError as damage:
        raise UserError(f"{path}: {damage}; its figures cannot be trusted") from damage


def check_shipped(folder: Path, report: Report) -> None:
    """Raise CheckFailedError unless `model.onnx` is the file that the report's figures are of, and
    the artifact beside it is as it was written.
    """
    path = folder / MODEL_FILE
    measured = [s["file_sha256"] for s in report["stages"] if s["name"] == report["final"]]
    if measured != [file_digest(path)]:
        raise CheckFailedError(f"{path} is not the file that was measured: do not ship it")
    for name, about in report["files"].items():
        part = folder / name
        if name.startswith("artifact/") and part.is_file() and file_digest(part) != about["sha256"]:
            raise CheckFailedError(f"{part} is not the file that the run wrote: it was changed")
