"""A worker process: asks for trials, runs them and reports results until the sweep is complete."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from optuna.trial import Trial, TrialState

from compressbench.config.compose import cached_config
from compressbench.config.instantiate import instantiate
from compressbench.core.errors import LimitError, UserError
from compressbench.search import space as spaces
from compressbench.search.early_stopping import hopeless
from compressbench.search.initial_trials import Configs, end
from compressbench.search.repeats import repeat_front
from compressbench.search.result import Result, load
from compressbench.search.spec import Spec, load_spec
from compressbench.search.storage import SweepStorage, open_storage
from compressbench.search.worker_loop import TRIALS, Lease, StoppedError, work, work_folder
from compressbench.store.processes import process_token

EXIT_USER = 101  # Python itself may end with 1


def main() -> int:
    """Entry point: the first line on standard input is {"spec", "index", "log"}; its end means:
    stop. What a trial needs is imported before it comes.
    """
    import compressbench.search.trial  # noqa: F401 - with torch, most of the time of a start

    line = sys.stdin.readline()
    if not line:
        return 0
    message = json.loads(line)
    _write_to(Path(message["log"]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        serve(load_spec(message["spec"]), message["index"])
    except UserError as error:
        print(str(error), file=sys.stderr)
        return EXIT_USER
    except StoppedError:
        return 128 + signal.SIGTERM
    return 0


def serve(spec: Spec, index: int) -> None:
    """Work on a sweep until it is finished, including the final runs of its front."""
    owner = process_token()
    storage = open_storage(spec.home, spec.storage, spec.name, spec.lease_seconds)
    use_sampler(storage, spec, index)
    warm_up(spec)
    work(storage, spec, owner, lambda trial, lease: perform(storage, spec, trial, lease))
    repeat_front(storage, spec, owner)


def warm_up(spec: Spec) -> None:
    """Import everything a trial needs and plan one, before this worker holds a trial."""
    from compressbench.engine.prepare import prepare
    from compressbench.search.trial import trial_config

    settings = spaces.draw(spec.space, _configs(spec), lambda p: end(p, most=False))
    with suppress(LimitError):  # infeasible, as other settings may not be
        prepare(trial_config(spec, spaces.overrides(spec.space, settings)))


def use_sampler(storage: SweepStorage, spec: Spec, index: int) -> None:
    """Set this worker's sampler, whose random numbers differ from every other worker's."""
    number = storage.created() * 1000 + index
    storage.study.sampler = instantiate(
        spec.sampler, "search.sampler", seed=spec.seed, number=number
    )


def _stop(number: int, frame: FrameType | None) -> None:
    raise StoppedError(number)


def _write_to(log: Path) -> None:
    """Redirect the output of this process and its children into a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _watch_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def perform(storage: SweepStorage, spec: Spec, trial: Trial, lease: Lease) -> Result:
    """Choose the settings of a trial and run it; an error becomes its result."""
    from compressbench.search.trial import failure

    folder = work_folder(spec, trial.number, lease.owner)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings = choose(spec, trial)
        result = _same(storage, trial.number, settings) or _run(
            storage, spec, settings, folder, lease
        )
    except Exception as error:  # noqa: BLE001 - a failed trial does not end the sweep
        result = failure(error)
        if result.kind == "bug":
            traceback.print_exc()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not any(folder.iterdir()):
        folder.rmdir()
        return result
    return replace(result, folder=f"{TRIALS}/{trial.number}")


def choose(spec: Spec, trial: Trial) -> spaces.Settings:
    return spaces.draw(
        spec.space, _configs(spec), lambda p: trial._suggest(p.key, p.distribution())
    )


def _configs(spec: Spec) -> Configs:
    return lambda options: cached_config((*spec.fixed, *options), spec.conf_folders)


def _same(storage: SweepStorage, number: int, settings: Mapping[str, Any]) -> Result | None:
    """The result of an earlier trial with the same settings; what failed may work now."""
    rounded = _plain(settings)
    for other in storage.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        if other.number != number and _plain(other.params) == rounded:
            text = storage.leases.result(f"trial/{other.number}")
            result = None if text is None else load(text)
            if result is not None and result.state != "failed":
                first = other.number if result.same_as is None else result.same_as
                return replace(result, same_as=first)
    return None


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 12) if isinstance(v, float) else v for k, v in settings.items()}


def _run(
    storage: SweepStorage, spec: Spec, settings: Mapping[str, Any], folder: Path, lease: Lease
) -> Result:
    from compressbench.search.trial import run_trial, trial_config

    overrides = spaces.overrides(spec.space, settings)
    config = trial_config(spec, overrides)
    order = list(config.stages)

    def stop(step: Any) -> str:
        lease.check()
        if not spec.early_stop:
            return ""
        after = tuple(f"recipe.stages.{n}." for n in order[step.index + 1 :])
        places = {p.key: p.place + "." for p in spec.space}
        later = {k: v for k, v in settings.items() if places[k].startswith(after)}
        results = storage.results()
        done = [(t.params, results[t.number]) for t in storage.trials(TrialState.COMPLETE)
                if t.number in results]  # fmt: skip
        return hopeless(step.name, step.measurement.figures, later, done,
                        spec.objectives, spec.constraints)  # fmt: skip

    name = lease.task.replace("/", " ")
    return run_trial(
        spec, config, overrides, name=name, folder=folder, stop=stop, progress=lease.check
    )


if __name__ == "__main__":
    code = main()
    gc.freeze()  # ends 1.5 s sooner, as in cli/main.py
    sys.exit(code)
