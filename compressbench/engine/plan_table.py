"""`plan=true`: shows the stages, which of them the store already has, and the estimated time."""

from __future__ import annotations

from collections.abc import Sequence

from compressbench.core.formatting import seconds_text
from compressbench.engine.context import RunContext
from compressbench.engine.estimate import stage_seconds
from compressbench.engine.plan import Planned
from compressbench.results.terminal import Terminal, make_console, say, warn
from compressbench.store.explain import explain


def show_plan(plan: Sequence[Planned], run_context: RunContext) -> None:
    """Print each stage with its key, a store hit or the reason for the miss, and its time."""
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
        say(terminal.console, reason)
    for note in run_context.data_notes:
        warn(terminal.console, note)
    terminal.console.print(f"about {seconds_text(total)} on this machine; nothing was run")
