"""Writes the run folder: recipe, report, plots, and the file to ship."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

from compressbench.core.atomic import write_json_atomic, write_text_atomic
from compressbench.core.digests import copy_checked
from compressbench.core.disk_full import DiskFullError
from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.core.redact import redact
from compressbench.core.types import Step
from compressbench.engine.context import RunContext
from compressbench.engine.environment import environment
from compressbench.engine.prepare import Prepared
from compressbench.models.in_hand import TARGET as IN_HAND
from compressbench.results.report_file import write_report
from compressbench.results.run_report import (
    Report,
    RunInfo,
    write_tables,
)

RECIPE_FILE = "recipe.yaml"
SHIPPED = ("model.onnx", "model.onnx.zst", "model.json", "predict.py", "tokenizer.json", "artifact")


def begin(prepared: Prepared, folder: Path, command: list[str]) -> RunInfo:
    """Write `recipe.yaml`, without secrets, into the run folder; return what is known before."""
    import yaml

    config = prepared.config
    info = RunInfo(
        name=run_name(prepared),
        recipe=config.name,
        folder=folder,
        config=config.as_dict(),
        environment=environment(),
        command=command,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        metric=prepared.context.data.spec.metric,
    )
    again = {**config.as_dict(), "plan": False}
    text = f"# {shlex.join(redact(command))}\n" + yaml.safe_dump(redact(again), sort_keys=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reached("run_folder.made")
        write_text_atomic(folder / RECIPE_FILE, text)
    except DiskFullError:
        remove_if_empty(folder)
        raise
    except OSError as error:
        raise UserError(f"hydra.run.dir={folder}: {error.strerror}") from error
    return info


def run_name(prepared: Prepared) -> str:
    """A name that tells runs apart: recipe, model, time."""
    stamp = datetime.now().strftime("%m-%d %H:%M:%S")
    return f"{prepared.config.name} {_model_class(prepared)} {stamp}"


def tags(prepared: Prepared) -> dict[str, str]:
    """Tags of a tracked run: recipe, model, dataset."""
    return {
        "recipe": prepared.config.name,
        "model": _model_class(prepared),
        "dataset": prepared.context.data.spec.name,
    }


def _model_class(prepared: Prepared) -> str:
    model = prepared.config.model
    target = str(model["_target_"])
    return str(model["name"]) if target == IN_HAND else target.rpartition(".")[2]


def ship(last: Step, run_context: RunContext, folder: Path) -> None:
    """Copy the measured model.onnx, its description and the artifact into the run folder."""
    from compressbench.export.bundle import write_bundle

    report = json.loads((last.files / "export.json").read_text())
    companions = getattr(run_context.data, "companions", None)
    beside: dict[str, str] = companions() if companions is not None else {}
    write_bundle(
        last.files / "model.onnx", run_context.data.spec, report, folder, beside,
        last.measurement.file_sha256,
    )  # fmt: skip
    entry = run_context.store.read(last.key)
    if entry is None:
        raise UserError(
            f"cache entry {last.key[:12]} disappeared during the run; run the command again"
        )
    reached("run_folder.bundle_written")
    (folder / "artifact").mkdir(exist_ok=True)
    for name in ("model.safetensors", "artifact.json"):
        sha256 = entry.manifest["files"][name]["sha256"]
        copy_checked(entry.folder / name, folder / "artifact" / name, sha256)
        reached("run_folder.artifact_file_written")


def record(report: Report, info: RunInfo) -> list[Path]:
    """Write report and tables; return the files to log."""
    folder = info.folder
    reached("run_folder.before_report")
    files = [write_report(report, folder)]
    reached("run_folder.report_written")
    write_json_atomic(folder / "environment.json", redact(info.environment))
    files += [folder / "environment.json", folder / RECIPE_FILE]
    if report["stages"]:
        files += write_tables(report, folder)
    return files + [folder / name for name in SHIPPED if (folder / name).exists()]


def remove_if_empty(folder: Path) -> None:
    """Remove the run folder, which Hydra creates before the config is checked."""
    for path in (folder, *folder.parents[:2]):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
