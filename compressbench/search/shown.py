"""What a sweep says on the terminal: a line for every finished trial, the front at the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressbench.search.front import front
from compressbench.search.supervisor import OnChange
from compressbench.terminal import Terminal, make_console
from compressbench.trials import FINISHED, Sweep, Trial
from compressbench.units import bytes_text, metric_text, milliseconds_text, seconds_text


def progress_lines() -> OnChange:
    """A callback that prints each trial once, when it has ended."""
    shown: set[int] = set()
    first = True

    def show(sweep: Sweep) -> None:
        nonlocal first
        ended = [t for t in sweep.trials if t.state in FINISHED]
        fresh = [t for t in ended if t.number not in shown]
        for trial in () if first and len(fresh) > 1 else fresh:
            print(f"[{len(ended)}/{sweep.n_trials}] {line(trial, sweep)}", flush=True)
        shown.update(t.number for t in fresh)
        first = False

    return show


def line(trial: Trial, sweep: Sweep) -> str:
    """One trial in words."""
    head = f"trial {trial.number} {trial.state}, {seconds_text(trial.seconds)}"
    figures = ", ".join(
        f"{o.name} {figure_text(o.name, trial.figures[o.name], sweep.metric)}"
        for o in sweep.objectives
        if o.name in trial.figures
    )
    infeasible = " (infeasible)" if trial.state == "complete" and not trial.feasible else ""
    parts = [p for p in (figures + infeasible, trial.reason, settings_text(trial.settings)) if p]
    return f"{head}: {'; '.join(parts)}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """The shortest names that tell the settings of a trial apart."""
    short = {k: k.lstrip("+").replace("recipe.stages.", "") for k in settings}
    return " ".join(f"{short[k]}={v:.4g}" if isinstance(v, float) else f"{short[k]}={v}"
                    for k, v in settings.items())  # fmt: skip


def figure_text(name: str, value: float, metric: str) -> str:
    if name.endswith("_bytes"):
        return bytes_text(value)
    if name.endswith("_ms"):
        return milliseconds_text(value)
    return metric_text(value, metric) if name.startswith(("val/", "test/")) else f"{value:.4g}"


def show_end(sweep: Sweep) -> None:
    """The front as a table, and what to do next."""
    terminal = Terminal([], console=make_console())
    points = [
        (t, [t.figures[o.name] for o in sweep.objectives])
        for t in sweep.trials
        if t.feasible and t.state == "complete" and t.folder
        and all(o.name in t.figures for o in sweep.objectives)
    ]  # fmt: skip
    kept = [points[i][0] for i in front([v for _, v in points], sweep.objectives)]
    first = sweep.objectives[0].name
    kept.sort(key=lambda t: t.figures[first])
    terminal.table([_row(trial, sweep) for trial in kept], optional=("time",))
    counts = [f"{sum(t.state == s for t in sweep.trials)} {s}" for s in FINISHED]
    say = [f"{', '.join(counts)}; {len(kept)} in the front"]
    if kept:
        folder = Path(kept[-1].folder)
        say.append(f"the files to ship: {Path(sweep.folder) / 'trials'}/NUMBER/model.onnx")
        say.append(f"one again: compressbench replay {shlex.quote(str(folder / 'recipe.yaml'))}")
    more = shlex.join([*_without_total(sweep), f"search.n_trials={2 * sweep.n_trials}"])
    say.append(f"more trials: {more}")
    for text in say:
        terminal.console.print(text, markup=False, soft_wrap=True)


def _without_total(sweep: Sweep) -> list[str]:
    return [a for a in sweep.command if not a.startswith("search.n_trials=")]


def _row(trial: Trial, sweep: Sweep) -> dict[str, str]:
    names = [o.name for o in sweep.objectives]
    names += [n for n in (f"test/{sweep.metric}",) if n in trial.figures]
    return {
        "trial": str(trial.number),
        **{n: figure_text(n, trial.figures[n], sweep.metric) for n in names},
        **{k.rpartition(".")[2]: f"{v:.4g}" if isinstance(v, float) else str(v)
           for k, v in trial.settings.items()},
        "time": seconds_text(trial.seconds),
    }  # fmt: skip
