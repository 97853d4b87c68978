"""Every sampler of the group drives a sweep of two objectives, and no two workers draw the same."""

from __future__ import annotations

import pytest
import yaml

from compressbench.config.groups import config_folder
from compressbench.config.instantiate import instantiate
from compressbench.core.errors import UserError
from compressbench.results.sweep import Constraint
from compressbench.search.worker import use_sampler
from compressbench.search.worker_loop import work
from tests.search.noop import answer, make_spec, make_storage

SLOW = ("gp", "nsgaiii", "qmc")
FILES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.long] if path.stem in SLOW else [])
    for path in sorted((config_folder() / "sampler").glob("*.yaml"))
]
BOUND = (Constraint("val/accuracy", True, 0.8),)


@pytest.mark.parametrize("path", FILES)
def test_it_finds_settings_within_the_space(path, tmp_path):
    sampler = yaml.safe_load(path.read_text())
    if "n_startup_trials" in sampler:
        sampler["n_startup_trials"] = 6  # then two by the model
    if "population_size" in sampler:
        sampler["population_size"] = 4
    spec = make_spec(tmp_path / "noop", 8, sampler=sampler, constraints=BOUND)
    storage = make_storage(spec)
    use_sampler(storage, spec, 0)
    work(storage, spec, "w", answer)
    drawn = [t.params for t in storage.trials()]
    assert all(0 <= p["x"] <= 1 and p["bits"] in (2, 4, 8) for p in drawn)
    assert len({p["x"] for p in drawn}) >= 6, "a genetic algorithm may keep some"
    again = make_spec(tmp_path / "again", 8, sampler=sampler, constraints=BOUND)
    repeat = make_storage(again)
    use_sampler(repeat, again, 0)
    work(repeat, again, "w", answer)
    assert [t.params for t in repeat.trials()] == drawn, "the seed decides"


@pytest.mark.parametrize("name", ["tpe", "nsgaii"])
def test_workers_and_restarts_draw_differently(name, tmp_path):
    sampler = yaml.safe_load((config_folder() / "sampler" / f"{name}.yaml").read_text())
    spec = make_spec(tmp_path / "noop", 6, sampler=sampler)
    storage = make_storage(spec)
    for total, index in ((2, 0), (4, 1), (6, 0)):  # a worker, another, the first started again
        use_sampler(storage, spec, index)
        work(storage, make_spec(spec.home, total), "w", answer)
    assert len({t.params["x"] for t in storage.trials()}) == 6


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("tpe", "n_startup_trials", 0, "n_startup_trials must be an integer of at least 1"),
        ("nsgaii", "population_size", 1, "population_size must be an integer of at least 2"),
        ("qmc", "sequence", "latin", "sequence must be sobol or halton"),
        ("gp", "deterministic_objective", "no", "deterministic_objective must be true or false"),
        ("random", "n", 1, "search.sampler.n: no such option"),
    ],
)
def test_a_wrong_option_is_one_line(name, option, value, message):
    sampler = yaml.safe_load((config_folder() / "sampler" / f"{name}.yaml").read_text())
    with pytest.raises(UserError, match=message):
        instantiate({**sampler, option: value}, "search.sampler", seed=0, number=0)
