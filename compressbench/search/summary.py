"""Prints the end of a sweep: the front, and the next commands."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

from compressbench.results import front as fronts
from compressbench.results.sweep import Sweep
from compressbench.results.sweep_terminal import show
from compressbench.results.terminal import make_console
from compressbench.tracking.run_session import Tracked


def _not_complete(sweep: Sweep) -> list[str]:
    """A line each for infeasible and for failed trials, with the most frequent reason."""
    found = []
    for state in ("infeasible", "failed"):
        reasons = Counter(trial.reason for trial in sweep.trials if trial.state == state)
        for reason, count in reasons.most_common(1):
            often = "" if len(reasons) == 1 else f", {count} of them"
            found.append(
                f"{reasons.total()} of {len(sweep.trials)} trials {state}{often}: {reason}"
            )
    return found


def show_end(sweep: Sweep, tracked: Tracked) -> None:
    """Print the front as a table, then the next commands and links."""
    say = []
    if fronts.members(sweep):
        show([sweep])
        folder = Path(sweep.folder)
        say.append(f"the files: {folder / 'trials'}/TRIAL/model.onnx")
        front = ["compressbench", "front", str(folder), "--knee", "--html", "front.html"]
        say.append(f"which one to ship: {shlex.join(front)}")
    else:
        states = [trial.state for trial in sweep.trials]
        say.append(f"no front: {states.count('complete')} of {len(states)} trials are complete")
    say += _not_complete(sweep)
    if tracked.command:
        say.append(f"see it in MLflow: {tracked.command}")
    say += [f"then open: {tracked.link}"] * bool(tracked.link)
    say += [f"all trials as charts: {tracked.charts}"] * bool(tracked.charts)
    more = [a for a in sweep.command if not a.startswith("search.n_trials=")]
    say.append(f"more trials: {shlex.join([*more, f'search.n_trials={2 * sweep.n_trials}'])}")
    console = make_console()
    for text in say:
        console.print(text, markup=False, soft_wrap=True)
    if tracked.problem:
        console.print(f"WARNING: {tracked.problem}", markup=False, soft_wrap=True)
