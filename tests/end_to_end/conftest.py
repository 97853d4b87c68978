"""One store for all runs on the digits, so that what several tests need is computed once."""

from __future__ import annotations

import pytest
from running import QUIET, Run, few_epochs, finished_run


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory):
    return tmp_path_factory.mktemp("digits_store")


@pytest.fixture(scope="session")
def digits_run(digits_store, tmp_path_factory):
    """Run a recipe on the digits, with a few epochs, once a session; more overrides at will."""
    done: dict[tuple[str, ...], Run] = {}

    def run(recipe: str, *more: str) -> Run:
        arguments = (f"recipe={recipe}", *QUIET, *few_epochs(recipe), *more)
        if recipe != "baseline":
            run("baseline")  # all recipes start with its training
        if arguments not in done:
            done[arguments] = finished_run(arguments, tmp_path_factory.mktemp(recipe), digits_store)
        return done[arguments]

    return run
