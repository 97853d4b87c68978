"""One run of a recipe from a resolved config: lay it out, run it, report and track it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compressbench.config.instantiate import allow_arguments, instantiate
from compressbench.config.recipe_file import read_recipe
from compressbench.core.atomic import write_json_atomic
from compressbench.core.errors import UserError
from compressbench.core.formatting import seconds_text
from compressbench.core.nearest import nearest
from compressbench.core.types import Data, Step
from compressbench.engine.context import RunContext
from compressbench.engine.environment import environment
from compressbench.engine.executor import run
from compressbench.engine.plan import Planned, make_plan
from compressbench.engine.runtime import resolve
from compressbench.export.opsets import check_opset
from compressbench.measure.accuracy import check_metric
from compressbench.results.run_report import (
    Report,
    RunInfo,
    build_report,
    headline,
    markdown,
    table,
    write_tables,
)
from compressbench.results.terminal import Terminal, make_console
from compressbench.store.entries import Store
from compressbench.tracking.trackers import Session

RECIPE_FILE, REPORT_FILE = "recipe.yaml", "report.json"
KEYS = {"model", "dataset", "recipe", "trainer", "tracking", "seed", "plan", "name",
        "checkpoint_seconds", "opset"}  # fmt: skip


def run_recipe(config: Mapping[str, Any], folder: Path, command: list[str]) -> int:
    """Run what `config` says; everything that is left behind is in `folder`."""
    try:
        plan, run_context = prepare(config)
        if config["plan"]:
            show_plan(plan, run_context)
    except UserError:
        remove_if_empty(folder)
        raise
    if config["plan"]:
        remove_if_empty(folder)
        return 0
    tracker = instantiate(config["tracking"], "tracking")
    info = begin(config, folder, command, run_context.data)
    session = tracker.start(folder, run_name(config), tags(config, run_context.data), config)
    _run_all(plan, run_context, info, session)
    return 0


def prepare(config: Mapping[str, Any]) -> tuple[list[Planned], RunContext]:
    """Check the whole config and lay out its recipe; nothing is trained or written yet."""
    for name in sorted(set(config) ^ KEYS):
        problem = "is required" if name in KEYS else f"no such key{nearest(name, KEYS)}"
        raise UserError(f"{name}: {problem}")
    for name in ("model", "dataset", "recipe", "trainer", "tracking"):
        if not isinstance(config[name], Mapping):
            raise UserError(f"{name} must be a section of options, got {config[name]!r}")
    if not isinstance(config["name"], str) or not config["name"].strip():
        raise UserError(f"name must be text, got {config['name']!r}")
    if not isinstance(config["plan"], bool):
        raise UserError(f"plan must be true or false, got {config['plan']!r}")
    seconds = config["checkpoint_seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds < 0:
        raise UserError(f"checkpoint_seconds must be a number of at least 0, got {seconds!r}")
    check_opset(config["opset"])
    recipe = config["recipe"]
    for name in sorted(set(recipe) - {"stages"}):
        raise UserError(f"recipe.{name}: no such key; a recipe has stages")
    runtime = resolve(config["trainer"])
    _build(config, "tracking", "start")
    data: Data = _build(config, "dataset", "manifest")
    check_metric(data.spec.metric)
    plan = make_plan(
        recipe["stages"], config["model"], config["dataset"], data, runtime, config["seed"],
        config["opset"],
    )  # fmt: skip
    store, opset = Store.default(), config["opset"]
    return plan, RunContext(store, data, config["dataset"], runtime, seconds, opset=opset)


def _build(config: Mapping[str, Any], group: str, method: str) -> Any:
    """The object of a group, which must have the `method` that makes it one."""
    made = instantiate(config[group], group)
    if not callable(getattr(made, method, None)):
        raise UserError(f"{group}._target_={config[group]['_target_']} is no {group}")
    return made


def show_plan(plan: list[Planned], run_context: RunContext) -> None:
    """Print the stages, what the store has of them, why it lacks the rest, and the time."""
    from compressbench.engine.estimate import stage_seconds
    from compressbench.store.explain import explain

    terminal = Terminal([], console=make_console())
    seconds = stage_seconds(plan, run_context.data, run_context.runtime)
    total, rows, reasons = 0.0, [], []
    for planned in plan:
        stored = run_context.store.read(planned.key) is not None
        total += 0.0 if stored else seconds[planned.name]
        rows.append(
            {
                "stage": planned.name,
                "kind": planned.kind,
                "starts from": planned.parents.get("model", "a fresh model"),
                "teacher": ", ".join(n for role, n in planned.parents.items() if role != "model"),
                "key": planned.key[:12],
                "store": "hit" if stored else "miss",
                "estimate": seconds_text(0.0 if stored else seconds[planned.name]),
            }
        )
        if not stored:
            reasons.append(f"{planned.name}: {explain(run_context.store, planned.parts)}")
    terminal.table(rows, optional=("key", "teacher"))
    for reason in reasons:
        terminal.console.print(reason, markup=False, soft_wrap=True)
    terminal.console.print(f"about {seconds_text(total)} on this machine; nothing was run")


def begin(config: Mapping[str, Any], folder: Path, command: list[str], data: Data) -> RunInfo:
    """Write the recipe into the run folder and note what is known before the run."""
    import yaml

    info = RunInfo(
        name=run_name(config),
        recipe=config["name"],
        folder=folder,
        config=config,
        environment=environment(),
        command=command,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        metric=data.spec.metric,
    )
    text = f"# {shlex.join(command)}\n" + yaml.safe_dump({**config, "plan": False}, sort_keys=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"hydra.run.dir={folder}: {error.strerror}") from error
    return info


def _run_all(plan: list[Planned], run_context: RunContext, info: RunInfo, session: Session) -> None:
    """Drain the recipe into terminal, tracking and report, whatever ends it."""
    steps: list[Step] = []
    status = "killed"
    try:
        with Terminal([p.name for p in plan], info.metric) as terminal:
            for step in run(plan, replace(run_context, progress=terminal.progress)):
                steps.append(step)
                session.log_step(step)
                terminal.step(step)
        ship(steps[-1], run_context, info.folder)
        status = "finished"
    except Exception:
        status = "failed"
        raise
    finally:
        _close(info, steps, status, session)


def ship(last: Step, run_context: RunContext, folder: Path) -> None:
    """Put the file to ship into the run folder, with what explains and rebuilds it."""
    import json

    from compressbench.export.bundle import write_bundle

    report = json.loads((last.files / "export.json").read_text())
    companions = getattr(run_context.data, "companions", None)
    beside: dict[str, str] = companions() if companions is not None else {}
    write_bundle(last.files / "model.onnx", run_context.data.spec, report, folder, beside)
    entry = run_context.store.read(last.key)
    if entry is None:
        raise UserError(f"the store lost entry {last.key[:12]} while the recipe ran: run it again")
    (folder / "artifact").mkdir(exist_ok=True)
    for name in ("model.safetensors", "artifact.json"):
        shutil.copyfile(entry.folder / name, folder / "artifact" / name)


def record(info: RunInfo, steps: list[Step], status: str) -> tuple[Report, list[Path]]:
    """Write the report and its tables; (the report, the files that a tracker should have)."""
    folder = info.folder
    report = build_report(info, steps, status)
    write_json_atomic(folder / REPORT_FILE, report)
    write_json_atomic(folder / "environment.json", info.environment)
    files = [folder / REPORT_FILE, folder / "environment.json", folder / RECIPE_FILE]
    if steps:
        files += write_tables(report, folder)
    shipped = ("model.onnx", "model.onnx.zst", "model.json", "predict.py", "tokenizer.json",
               "artifact")  # fmt: skip
    return report, files + [folder / name for name in shipped if (folder / name).exists()]


def _pictures(report: Report, folder: Path) -> list[Path]:
    from compressbench.results.pruning_plots import pruning_pictures
    from compressbench.results.run_plots import accuracy_against_size, layer_widths, write_html

    made = {
        "accuracy_size": accuracy_against_size(report),
        "layer_widths": layer_widths(report),
        **pruning_pictures(report),
    }
    figures = {folder / f"{name}.html": f for name, f in made.items() if f is not None}
    for path, figure in figures.items():
        write_html(figure, path)
    return list(figures)


def _close(info: RunInfo, steps: list[Step], status: str, session: Session) -> None:
    """Write the report and its pictures, hand everything to tracking, show the end."""
    folder = info.folder
    report, files = record(info, steps, status)
    files += _pictures(report, folder) if steps else []
    tracked = session.finish(status.upper(), markdown(report), files)
    terminal = Terminal([], info.metric)
    if status == "finished":
        terminal.summary(
            table(report), str(folder / "model.onnx"), tracked.command, tracked.link,
            tracked.problem,
        )  # fmt: skip
        terminal.console.print(headline(report), markup=False, soft_wrap=True)
        again = shlex.join(
            ["compressbench", *allow_arguments(), "replay", str(folder / RECIPE_FILE)]
        )
        terminal.console.print(f"the same again: {again}", markup=False, soft_wrap=True)
    elif tracked.problem:
        terminal.warn(tracked.problem)


def replay(path: Path) -> int:
    """Run a `recipe.yaml` again; say whether the file to ship has the same bytes as before."""
    import json

    config = read_recipe(path)
    stamp = datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f")
    folder = Path("runs").absolute() / stamp
    run_recipe(config, folder, ["compressbench", "replay", str(path)])
    before = path.with_name(REPORT_FILE)
    if before.is_file():
        old = json.loads(before.read_text())["files"]["model.onnx"]["sha256"]
        new = json.loads((folder / REPORT_FILE).read_text())["files"]["model.onnx"]["sha256"]
        same = "the same bytes as" if old == new else "NOT the same bytes as"
        print(f"model.onnx has {same} the one beside {path}")
    return 0


def run_name(config: Mapping[str, Any]) -> str:
    stamp = datetime.now().strftime("%m-%d %H:%M:%S")
    return f"{config['name']} {_class_name(config['model'])} {stamp}"


def tags(config: Mapping[str, Any], data: Data) -> dict[str, str]:
    return {
        "recipe": config["name"],
        "model": _class_name(config["model"]),
        "dataset": data.spec.name,
    }


def _class_name(config: Mapping[str, Any]) -> str:
    return str(config["_target_"]).rpartition(".")[2]


def remove_if_empty(folder: Path) -> None:
    """Hydra makes the run folder before anything is known to be right."""
    for path in (folder, *folder.parents[:2]):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
