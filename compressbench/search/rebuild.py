"""Adds trials that the database of a sweep has lost, from `sweep.json`, under their numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from compressbench.core.errors import UserError
from compressbench.results.sweep import Trial
from compressbench.results.sweep_file import SWEEP_FILE, read_sweep
from compressbench.search.result import Result
from compressbench.search.space import Parameter
from compressbench.search.spec import Spec
from compressbench.search.storage import FIXED, OWNER, SweepStorage

_SAME = re.compile(r"same settings as trial (\d+)")
_NOBODY = ""  # the owner of a trial whose worker is not known


def add_lost_trials(storage: SweepStorage, spec: Spec) -> None:
    """Add the trials that sweep.json has and the database lacks."""
    if not (spec.home / SWEEP_FILE).is_file():
        return
    with storage.locked():
        known = storage.created()
        try:
            stored = read_sweep(spec.home)
        except UserError as error:
            if known == 0:
                logging.getLogger(__name__).warning("%s; the sweep begins anew", error)
            return
        lost = [trial for trial in stored.trials if trial.number >= known]
        for trial in lost:
            _add(storage, spec, trial, stored.baseline)
    if lost:
        logging.getLogger(__name__).warning(
            "%s lacked %d of %d trials: added from %s", spec.home, len(lost), len(stored.trials),
            SWEEP_FILE,
        )  # fmt: skip


def _add(storage: SweepStorage, spec: Spec, lost: Trial, baseline: Mapping[str, float]) -> None:
    """Add a trial; one that was running waits for a worker."""
    study = storage.study
    by_key = {parameter.key: parameter for parameter in spec.space}
    params = {key: _within(by_key[key], value) for key, value in lost.settings.items()}
    running = lost.state == "running"
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={} if running else params,
        distributions={} if running else {key: by_key[key].distribution() for key in params},
        user_attrs={OWNER: _NOBODY},
        system_attrs={FIXED: params} if running else {},
    )
    created = study._storage.create_new_trial(study._study_id, template_trial=template)
    if running:
        return
    result = _result(lost, baseline, spec.home)
    storage.leases.finish(f"trial/{lost.number}", _NOBODY, result.dump())
    trial = optuna.trial.Trial(study, created)
    storage.tell(trial, result, spec.objectives, spec.constraints)


def _within(parameter: Parameter, value: Any) -> Any:
    """A setting as it was drawn; sweep.json has rounded it, perhaps over a bound."""
    if parameter.choices or not isinstance(value, float):
        return value
    return min(max(value, float(parameter.low)), float(parameter.high))


def _result(lost: Trial, baseline: Mapping[str, float], folder: Path) -> Result:
    assert lost.state != "running"
    same = _SAME.fullmatch(lost.reason)
    place = f"trials/{lost.number}"
    return Result(
        lost.state,
        figures=_without_test(lost.figures),
        baseline=_without_test(baseline),
        folder=place if (folder / place).is_dir() else "",
        run=lost.run,
        seconds=lost.seconds,
        ended=lost.ended,
        reason="" if same else lost.reason,
        violation=lost.violation,
        same_as=int(same[1]) if same else None,
    )


def _without_test(figures: Mapping[str, float]) -> dict[str, float]:
    """What a trial itself had; test data are measured again, from the store."""
    return {name: value for name, value in figures.items() if not name.startswith("test/")}
