"""The end of a sweep: measures the front on test data, and repeats it under other seeds."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from typing import Any

from optuna.trial import TrialState

from compressbench.core.kill_points import reached
from compressbench.core.signals import SignalledError
from compressbench.results import pareto
from compressbench.results.front import signed
from compressbench.search import space as spaces
from compressbench.search.result import Result
from compressbench.search.spec import Spec
from compressbench.search.storage import SweepStorage
from compressbench.search.worker_loop import IDLE_SECONDS, holding


def repeat_front(storage: SweepStorage, spec: Spec, owner: str) -> None:
    """The final front's members under `spec.seeds` seeds, their own first, with test data."""
    from compressbench.search.trial import failure, run_repeat

    members = final_front(storage, spec)
    tasks = [f"repeat/{n}/{r}" for n in members for r in range(spec.seeds)]
    while True:
        states = storage.leases.states("repeat")
        loose = {task for task, _ in storage.leases.loose("repeat")}
        left = [t for t in tasks if states.get(t) != "done"]
        if not left:
            return
        mine = next((t for t in left if _take(storage, t, owner, states, loose)), None)
        if mine is None:
            time.sleep(IDLE_SECONDS)
            continue
        _, number, repeat = mine.split("/")
        try:
            with holding(storage, mine, owner):
                overrides = spaces.overrides(spec.space, members[int(number)])
                result = run_repeat(spec, overrides, int(repeat))
                reached("repeat.measured")
        except SignalledError:
            storage.leases.release(mine, owner)
            raise
        except Exception as error:  # noqa: BLE001 - the front stands without it
            traceback.print_exc()
            result = failure(error)
        storage.leases.finish(mine, owner, result.dump())
        reached("repeat.stored")


def _take(
    storage: SweepStorage, task: str, owner: str, states: Mapping[str, str], loose: set[str]
) -> bool:
    if task not in states:
        return storage.leases.hold(task, owner)
    if task not in loose:
        return False
    lost = Result("failed", reason="its workers died", kind="lost")
    return storage.leases.adopt(task, owner) or (
        storage.leases.condemn(task, owner, lost.dump()) and False
    )


def final_front(storage: SweepStorage, spec: Spec) -> dict[int, Mapping[str, Any]]:
    """Number -> settings of the feasible trials that no other trial dominates."""
    results = storage.results()
    rows = [
        (t.number, t.params, values)
        for t in storage.trials(TrialState.COMPLETE)
        if (r := results.get(t.number)) and r.same_as is None
        and r.feasible(spec.constraints) and (values := r.values(spec.objectives))
    ]  # fmt: skip
    losses = signed([values for _, _, values in rows], spec.objectives)
    kept = pareto.front_mask(losses) & pareto.distinct(losses)
    return {row[0]: row[1] for row, inside in zip(rows, kept, strict=True) if inside}
