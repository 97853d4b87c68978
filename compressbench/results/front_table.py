"""Tables of the front: raw values for CSV and JSON, text for the terminal, Markdown for MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compressbench.core.formatting import (
    MISSING,
    bytes_text,
    metric_text,
    metric_with_error,
    milliseconds_text,
    times_text,
)
from compressbench.results.front import (
    hypervolume,
    knee,
    members,
    metric_name,
    size_name,
    standard_error,
    within_noise,
)
from compressbench.results.sweep import Objective, Sweep, Trial
from compressbench.results.tables import markdown_table

_PREFIX = "recipe.stages."
_NOTE_ROWS = 30
_MARKS = {
    "knee": "the best compromise: larger files gain little, smaller files lose a lot",
    "≈": "within noise: a smaller member is as good, as far as the validation data can tell",
}


def short_name(setting: str) -> str:
    """Shorten a setting: `recipe.stages.prune.sparsity` to `prune.sparsity`.

    Also `quantizer@recipe.stages.quantize.weight` to `quantize.weight`.
    """
    before, found, after = setting.partition(_PREFIX)
    return after if found and (not before or before.endswith("@")) else setting


def setting_text(value: Any) -> str:
    """The value of a setting as text; floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def settings_text(trial: Trial) -> list[str]:
    """The settings of a trial, each as `prune.sparsity = 0.5`."""
    return [f"{short_name(name)} = {setting_text(v)}" for name, v in trial.settings.items()]


def figure_text(name: str, value: float | None, metric: str) -> str:
    """A figure as text with its unit; `metric` is the metric of the sweep."""
    kind, _, last = name.partition("/")
    if last == metric:
        return metric_text(value, metric)
    if name.endswith("_bytes"):
        return bytes_text(value)
    if name.endswith("_ms"):
        return milliseconds_text(value)
    if name == "latency/speedup":
        return times_text(value)
    if value is None:
        return MISSING
    return metric_text(value, last) if kind in ("val", "test") else f"{value:.4g}"


def _settings_names(trials: Iterable[Trial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.settings))


def raw_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """One row per member with its unrounded figures, None for those that were not measured."""
    front, metric = members(sweep), metric_name(sweep)
    noisy, best = within_noise(sweep, front), knee(sweep, front)
    names = list(dict.fromkeys(name for trial in front for name in trial.figures))
    return [
        {
            "sweep": sweep.name,
            "trial": trial.number,
            "knee": best is not None and trial.number == best.number,
            "within_noise": trial.number in noisy,
            "standard_error": standard_error(trial, metric, sweep)
            if metric in trial.figures
            else None,
            **{name: trial.figures.get(name) for name in names},
            **{name: trial.settings.get(name) for name in _settings_names(front)},
            "repeats": len(trial.repeats),
            "folder": trial.folder,
        }
        for trial in front
    ]


def text_rows(sweep: Sweep) -> list[dict[str, str]]:
    """One row for the baseline and one per member, heading -> text; marks are under ""."""
    front = members(sweep)
    noisy, best = within_noise(sweep, front), knee(sweep, front)
    first = {"trial": "baseline", **_figures(sweep, None, front)}
    rows = [first | dict.fromkeys(map(short_name, _settings_names(front)), "") | {"": ""}]
    for trial in front:
        marks = ["knee"] * (best is not None and trial.number == best.number)
        marks += ["≈"] * (trial.number in noisy)
        settings = {
            short_name(n): setting_text(trial.settings[n]) if n in trial.settings else ""
            for n in _settings_names(front)
        }
        figures = _figures(sweep, trial, front)
        rows.append({"trial": str(trial.number), **figures, **settings, "": " ".join(marks)})
    return rows


def _figures(sweep: Sweep, trial: Trial | None, front: Sequence[Trial]) -> dict[str, str]:
    """The metric, the size and the other objectives of a trial, or of the baseline if None."""
    taken = sweep.baseline if trial is None else trial.figures
    metric, size = metric_name(sweep), size_name(sweep)
    error = 0.0 if trial is None or metric not in taken else standard_error(trial, metric, sweep)
    name = size_title(sweep)
    row = {f"val {sweep.metric}": metric_with_error(taken.get(metric), error, sweep.metric)}
    if any(f"test/{sweep.metric}" in t.figures for t in front):
        row[f"test {sweep.metric}"] = metric_text(taken.get(f"test/{sweep.metric}"), sweep.metric)
    row |= {name: bytes_text(taken.get(size)), f"{name} smaller": smaller_text(sweep, taken)}
    for objective in _others(sweep):
        row[objective.name] = figure_text(objective.name, taken.get(objective.name), sweep.metric)
    return row


def _others(sweep: Sweep) -> list[Objective]:
    shown = {metric_name(sweep), size_name(sweep)}
    return [o for o in sweep.objectives if o.name not in shown]


def smaller_text(sweep: Sweep, figures: Mapping[str, float]) -> str:
    """The size reduction: bytes of the baseline over those of `figures`."""
    before, after = (of.get(size_name(sweep)) for of in (sweep.baseline, figures))
    return times_text(before / after) if before and after else MISSING


def size_title(sweep: Sweep) -> str:
    """`onnx` or `download`."""
    return size_name(sweep).removeprefix("size/").removesuffix("_bytes")


def headline(sweep: Sweep) -> str:
    """One line with the number of members, the hypervolume, and what did not complete."""
    front, volume = members(sweep), hypervolume(sweep)
    states = [trial.state for trial in sweep.trials]
    done = states.count("complete")
    covered = "" if volume is None else f", hypervolume {volume:.1f} (points × halvings)"
    others = "".join(f", {states.count(s)} {s}" for s in ("infeasible", "failed") if s in states)
    return f"{sweep.name}: {len(front)} of {done} complete trials are on the front{covered}{others}"


def legend(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Explains the marks that occur in the last column."""
    used = {mark for row in rows for mark in row[""].split()}
    return [f"{mark}: {text}" for mark, text in _MARKS.items() if mark in used]


def markdown(sweep: Sweep, links: Mapping[int, str], picture: str) -> str:
    """The note of a sweep in MLflow: the front as a table, and a link to its chart.

    `links` maps numbers of trials to the links of their runs, `picture` is the link of the chart.
    """
    rows = text_rows(sweep)
    lines = [f"**[See the front]({picture})**: {headline(sweep)}", ""]  # MLflow hides the rest
    if len(rows) > 1:
        lines += markdown_table([_linked(row, links) for row in rows[: _NOTE_ROWS + 1]])
    if len(rows) > _NOTE_ROWS + 1:
        lines += ["", f"and {len(rows) - 1 - _NOTE_ROWS} more members, all in `front.html`"]
    lines += [
        "",
        f"No other trial is both as small and as good as a member ({size_name(sweep)} and "
        f"{metric_name(sweep)} of the exported file). Members are the runs with the tag "
        "`pareto = true`; the chart and all trials are under *Artifacts*.",
    ]
    return "\n".join([*lines, *(f"- {text}" for text in legend(rows))]) + "\n"


def _linked(row: Mapping[str, str], links: Mapping[int, str]) -> dict[str, str]:
    number = row["trial"]
    link = links.get(int(number)) if number.isdigit() else None
    return dict(row) if link is None else {**row, "trial": f"[{number}]({link})"}
