"""A worker process: asks for trials, runs them and reports results until the sweep is complete."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import Trial, TrialState

from compressbench.config.boundary import freeze
from compressbench.config.compose import cached_config
from compressbench.config.instantiate import instantiate
from compressbench.core.disk_full import disk_full, is_disk_full
from compressbench.core.errors import LimitError, UserError
from compressbench.core.kill_points import reached
from compressbench.core.redact import redacted_output
from compressbench.core.signals import SignalledError, stop_on_signals
from compressbench.search import space as spaces
from compressbench.search.early_stopping import hopeless
from compressbench.search.initial_trials import Configs, end
from compressbench.search.repeats import repeat_front
from compressbench.search.result import Result, load
from compressbench.search.spec import Spec, load_spec
from compressbench.search.storage import SweepStorage, open_storage
from compressbench.search.worker_loop import TRIALS, Lease, work, work_folder
from compressbench.store.processes import process_token

EXIT_USER = 101  # Python itself may end with 1
READY = "ready"  # the last word of a worker on the pipe to its supervisor
_GRACE_SECONDS = 15.0


def main() -> int:
    """Entry point: the first line on standard input is {"spec", "index", "log"}; its end means:
    stop. What a trial needs is imported before it comes.
    """
    import compressbench.search.trial  # noqa: F401 - with torch, most of the time of a start

    line = sys.stdin.readline()
    if not line:
        return 0
    message = json.loads(line)
    pipe = os.dup(1)
    _write_to(Path(message["log"]))
    stop_on_signals()
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        serve(load_spec(message["spec"]), message["index"], lambda: _say(pipe, READY))
    except UserError as error:
        _say(pipe, str(error))
        return EXIT_USER
    except SignalledError as error:
        return 128 + error.number
    except Exception as error:
        if is_disk_full(error):
            _say(pipe, str(disk_full(error)))
            return EXIT_USER
        _say(pipe, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        raise
    return 0


def _say(pipe: int, text: str) -> None:
    """Tell the supervisor; the log may be on a disk that is full."""
    os.write(pipe, f"{text}\n".encode())


def serve(spec: Spec, index: int, ready: Callable[[], None] = lambda: None) -> None:
    """Work on a sweep until it is finished, including the final runs of its front.

    `ready` is called before the first trial.
    """
    owner = process_token()
    storage = open_storage(spec.home, spec.storage, spec.name, spec.lease_seconds)
    use_sampler(storage, spec, index)
    warm_up(spec)
    ready()
    reached("worker.ready")
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


def _write_to(log: Path) -> None:
    """Redirect the output of this process and its children into a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _watch_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)  # in C++ code, or stuck
    os.kill(os.getpid(), signal.SIGKILL)


def perform(storage: SweepStorage, spec: Spec, trial: Trial, lease: Lease) -> Result:
    """Choose the settings of a trial and run it; an error becomes its result."""
    from compressbench.search.trial import failure

    folder = work_folder(spec, trial.number, lease.owner)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings = choose(spec, trial)
        reached("trial.chosen")
        result = _same(storage, trial.number, settings) or _run(
            storage, spec, settings, folder, lease
        )
    except Exception as error:
        if is_disk_full(error):  # says nothing of its settings: it is for the next start
            shutil.rmtree(folder, ignore_errors=True)
            raise disk_full(error) from error
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
    freeze()
    with redacted_output():
        code = main()
    gc.freeze()  # ends 1.5 s sooner, as in cli/main.py
    sys.exit(code)
