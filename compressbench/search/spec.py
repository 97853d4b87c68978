"""The specification of a sweep that its workers get, as plain JSON on standard input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressbench.results.sweep import Constraint, Objective
from compressbench.search.space import Parameter


@dataclass(frozen=True)
class Spec:
    """One sweep. `starts` are settings of the first trials, by number; `fixed` the overrides that
    all trials share; `conf` the config folders, ours first; `folder` is absolute.
    """

    name: str
    folder: str
    storage: str | None
    tag: str
    command: Sequence[str]
    metric: str
    validation_rows: int
    objectives: Sequence[Objective]
    constraints: Sequence[Constraint]
    space: Sequence[Parameter]
    fixed: Sequence[str]
    conf: Sequence[str]
    sampler: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    n_trials: int
    seed: int
    seeds: int
    early_stop: bool
    lease_seconds: float

    @property
    def home(self) -> Path:
        return Path(self.folder)

    @property
    def conf_folders(self) -> tuple[Path, ...]:
        return tuple(Path(c) for c in self.conf)

    def dump(self) -> str:
        return json.dumps(asdict(self))


def load_spec(text: str) -> Spec:
    raw = json.loads(text)
    raw["objectives"] = tuple(Objective(**o) for o in raw["objectives"])
    raw["constraints"] = tuple(Constraint(**c) for c in raw["constraints"])
    raw["space"] = tuple(
        Parameter(**{**p, "choices": tuple(p["choices"]), "texts": tuple(p["texts"])})
        for p in raw["space"]
    )
    return Spec(**raw)
