"""One store for all runs on the digits, so that what several tests need is computed once."""

from __future__ import annotations

import functools

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.end_to_end.running import QUIET, Run, few_epochs, finished_run


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators():
    """torch.onnx.export builds its table of operators anew each time, in 0.9 of 2 seconds."""
    build = functools.cache(ONNXRegistry.from_torchlib)

    def copied(*arguments, **keywords):
        first, copy = build(*arguments, **keywords), ONNXRegistry()
        copy._opset_version = first.opset_version
        copy.functions = {name: list(found) for name, found in first.functions.items()}
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield


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
