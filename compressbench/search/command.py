"""`python run.py -m search=...`: runs a sweep from the overrides of a command line."""

from __future__ import annotations

import functools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compressbench.config.boundary import allow_arguments
from compressbench.config.compose import cached_config
from compressbench.config.groups import config_folder
from compressbench.config.instantiate import instantiate
from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.core.redact import redact
from compressbench.core.signals import SignalledError
from compressbench.core.validation import check_integer
from compressbench.engine.environment import check_torchvision
from compressbench.results.sweep import Sweep
from compressbench.results.sweep_file import write_sweep
from compressbench.results.sweep_terminal import SweepView, counts
from compressbench.search import initial_trials
from compressbench.search import space as spaces
from compressbench.search.cluster import Launch, supervise_jobs
from compressbench.search.fingerprint import CONTENTS, check_same, digest, fingerprint
from compressbench.search.options import (
    Options,
    read_constraints,
    read_objectives,
    read_options,
)
from compressbench.search.rebuild import add_lost_trials
from compressbench.search.snapshot import DESCRIPTION, as_sweep
from compressbench.search.spec import Spec
from compressbench.search.storage import (
    DATABASE,
    SweepStorage,
    database_address,
    database_errors,
    open_storage,
)
from compressbench.search.summary import show_end
from compressbench.search.supervisor import call_worker, supervise
from compressbench.search.validate import check_places, check_values, read_dataset
from compressbench.search.worker_loop import RUNNING
from compressbench.tracking.run_session import Tracked
from compressbench.tracking.trackers import Tracker

DEFAULT_TRIALS = 50
MOST_LOCAL_WORKERS = 64  # processes, on a machine of fewer cores
_FINGERPRINT, _TAG, _THREADS = "compressbench.fingerprint", "compressbench.tag", "threads"
_IDENTITY = (_TAG, _THREADS, _FINGERPRINT)


@dataclass(frozen=True)
class Asked:
    """A sweep as requested: search options, searched parameters, and fixed overrides.

    `conf` are the config folders, ours first; `command` is the command line that repeats it.
    """

    options: Options
    space: Sequence[spaces.Parameter]
    fixed: Sequence[str]
    conf: tuple[Path, ...]
    command: Sequence[str]


def sweep(
    overrides: Sequence[str],
    folders: Sequence[Path],
    command: Sequence[str],
    launch: Launch | None = None,
) -> Sweep:
    """Run or continue the sweep that `overrides` describe; return its last state.

    `folders` are the user's own config folders; `command` is the command line that repeats it.
    Workers are our own processes, or jobs that `launch` runs. Raises UserError before anything runs
    for what cannot work.
    """
    asked = _read(overrides, (config_folder(), *folders), command)
    count = asked.options.workers
    if launch is not None:
        return _sweep(asked, functools.partial(supervise_jobs, count=count, launch=launch))
    check_integer("search.workers", count, 1, max(MOST_LOCAL_WORKERS, len(os.sched_getaffinity(0))))
    waiting = [
        call_worker() for _ in range(count)
    ]  # they import their libraries while we check the space
    try:
        return _sweep(asked, functools.partial(supervise, waiting=waiting))
    finally:
        for process in waiting:
            process.kill()
            process.wait()


def _sweep(asked: Asked, run: Callable[..., None]) -> Sweep:
    check_torchvision()
    spec, print_ = _plan(asked)
    storage = open_storage(
        spec.home, spec.storage, spec.name, spec.lease_seconds, objectives=spec.objectives
    )
    reached("sweep.storage_opened")
    with database_errors(redact(spec.storage) or str(spec.home / DATABASE)):
        spec = _identify(storage, spec, print_, asked.options.workers)
        add_lost_trials(storage, spec)
        description = _describe(spec, storage.study.user_attrs)
        reached("sweep.described")
        look = functools.partial(as_sweep, storage, description, spec.home)
        print(f"sweep {spec.name} in {spec.home}")
        tracked = _watched(spec, functools.partial(run, spec), storage, look)
        reached("sweep.tracking_ended")
        shutil.rmtree(spec.home / RUNNING, ignore_errors=True)
        done = look()
    show_end(done, tracked)
    reached("sweep.end_shown")
    return done


def _watched(
    spec: Spec, start: Callable[..., None], storage: SweepStorage, look: Callable[[], Sweep]
) -> Tracked:
    """Run the workers while the sweep is shown on the terminal, stored and tracked."""
    config = cached_config(tuple(spec.fixed), spec.conf_folders)
    tracker: Tracker = instantiate(config["tracking"], "tracking")
    tags = {"recipe": config["name"], "sweep": spec.name}
    params = {"search": config["search"], "space": {p.key: p.text for p in spec.space}}
    session = tracker.open_sweep(spec.home, spec.name, tags, params, spec.tag)
    status = "KILLED"
    with SweepView() as view:

        def changed(sweep: Sweep) -> None:
            write_sweep(sweep, spec.home)
            reached("sweep.change_written")
            session.changed(sweep)
            view.update(sweep)
            reached("sweep.change_shown")

        try:
            start(storage=storage, look=look, on_change=changed)
            status = "FINISHED"
            reached("sweep.workers_ended")
        except SignalledError as signalled:
            signalled.finished = counts(look())
            raise
        except Exception:
            status = "FAILED"
            raise
        finally:
            last = look()
            write_sweep(last, spec.home)
            tracked = session.finish(status, last)
    return tracked


def _read(arguments: Sequence[str], conf: tuple[Path, ...], command: Sequence[str]) -> Asked:
    """Parse the overrides of a sweep and check which parameters may be searched."""
    _, fixed = spaces.parse(arguments, conf)
    config = cached_config(tuple(fixed), conf)
    if config["plan"]:
        raise UserError("plan=true is for a single run; a search would train: leave it out")
    options = read_options(config["search"])
    space, fixed = spaces.joined(options.space, arguments, conf)
    if not space:
        raise UserError(
            "the search space is empty: choose search=prune_quant, or give overrides such as "
            "recipe.stages.prune.sparsity='interval(0.3,0.95)'"
        )
    for parameter in space:
        if parameter.place.split(".")[0] in ("search", "sampler", "tracking", "hydra", "trainer",
                                             "name", "plan"):  # fmt: skip
            raise UserError(f"{parameter.key}={parameter.text} cannot be searched")
    return Asked(options, space, fixed, conf, command)


def _plan(asked: Asked) -> tuple[Spec, dict[str, str]]:
    """The spec of the sweep, checked as far as possible without running a trial, and its
    fingerprint.
    """
    options, space, fixed, conf = asked.options, asked.space, asked.fixed, asked.conf

    def configs(chosen: tuple[str, ...]) -> Mapping[str, Any]:
        return cached_config((*fixed, *chosen), conf)

    combinations = check_places(space, configs)
    metric, validation_rows, contents = read_dataset(configs(())["dataset"])
    objectives = read_objectives(options.objectives, metric)
    constraints = read_constraints(options.constraints, metric)
    instantiate(options.sampler, "search.sampler", seed=0, number=0)
    if options.storage is not None:
        database_address(options.storage)
    known, ends = (
        initial_trials.known(options.enqueue, space),
        initial_trials.corners(space, configs),
    )
    is_grid = str(options.sampler["_target_"]).endswith(".grid")
    if is_grid:
        first = initial_trials.grid(space, configs, options.seed)
    else:
        first = initial_trials.unique([*known, *(ends if options.corners else [])])
    n_trials = options.n_trials or (len(first) if is_grid else DEFAULT_TRIALS)
    n_trials = min(n_trials, len(first)) if is_grid else n_trials
    print_ = fingerprint(space, objectives, constraints, combinations)
    check_values(ends, space, configs)
    name = options.name or f"{configs(())['name']}-{digest(print_)}"
    return Spec(
        name=name,
        folder=str((Path(options.folder) / name).absolute()),
        storage=options.storage,
        tag="",
        command=["python", "run.py", *allow_arguments(), *redact(list(asked.command))],
        metric=metric,
        validation_rows=validation_rows,
        objectives=objectives,
        constraints=constraints,
        space=tuple(space),
        fixed=tuple(fixed),
        conf=tuple(map(str, conf)),
        sampler=options.sampler,
        starts=first[:n_trials],
        n_trials=n_trials,
        seed=options.seed,
        seeds=options.seeds,
        early_stop=options.early_stop,
        lease_seconds=options.lease_seconds,
    ), {**print_, CONTENTS: contents}


def _identify(storage: SweepStorage, spec: Spec, print_: Mapping[str, str], workers: int) -> Spec:
    """Bind the name to the fingerprint, and take what all participants must share from the study.

    The CPU threads of a trial are such: other threads give slightly other weights.
    """
    print_ = redact(dict(print_))
    with storage.locked():
        known = storage.study.user_attrs
        if _FINGERPRINT not in known:
            threads = max(1, len(os.sched_getaffinity(0)) // workers)
            new = {_TAG: uuid.uuid4().hex, _THREADS: threads, _FINGERPRINT: dict(print_)}
            for name, value in {**new, **_noted(spec)}.items():
                storage.study.set_user_attr(name, value)
                reached("sweep.identified")
            known = storage.study.user_attrs
    check_same(spec.name, known[_FINGERPRINT], print_)
    trainer = cached_config(tuple(spec.fixed), spec.conf_folders)["trainer"]
    share = max(1, known[_THREADS] // trainer["devices"])
    more = [f"trainer.threads={share}"] if trainer["threads"] is None else []
    return replace(spec, tag=known[_TAG], fixed=(*spec.fixed, *more))


def _noted(spec: Spec) -> dict[str, Any]:
    """What the description in the sweep's folder says of its identity: its database was lost."""
    try:
        noted: dict[str, Any] = json.loads((spec.home / DESCRIPTION).read_text())["identity"]
        return {name: noted[name] for name in _IDENTITY if noted[name] is not None}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _describe(spec: Spec, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Write the description of the sweep into its folder, without credentials."""
    from compressbench.core.atomic import write_json_atomic

    description = {
        "schema_version": 1,
        "name": spec.name,
        "tag": spec.tag,
        "storage": redact(spec.storage),
        "command": list(spec.command),
        "metric": spec.metric,
        "validation_rows": spec.validation_rows,
        "objectives": [asdict(o) for o in spec.objectives],
        "constraints": [asdict(c) for c in spec.constraints],
        "n_trials": spec.n_trials,
        "space": {p.key: p.text for p in spec.space},
        "identity": {name: attributes.get(name) for name in _IDENTITY},
    }
    spec.home.mkdir(parents=True, exist_ok=True)
    write_json_atomic(spec.home / DESCRIPTION, description)
    return description
