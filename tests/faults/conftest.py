"""Every test of this folder carries the marker `faults`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.running import Run, finished_run

CHEAP = ("recipe=baseline", "model=mlp", "trainer=debug", "trainer.threads=1", "tracking=none")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def _first_cheap_run(tmp_path_factory) -> tuple[Run, Path]:
    folder, store = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("store")
    return finished_run(CHEAP, folder, store), store


@pytest.fixture
def cheap_run(_first_cheap_run, tmp_path) -> tuple[Run, Path]:
    """A finished run of `CHEAP`, and a copy of its store."""
    run, store = _first_cheap_run
    return run, Path(shutil.copytree(store, tmp_path / "store"))


@pytest.fixture
def run_again(tmp_path) -> Callable[[Path], Run]:
    """Call with a store: the run of `CHEAP`, in a folder of its own."""

    def again(store: Path) -> Run:
        folder = tmp_path / f"again{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return finished_run(CHEAP, folder, store)

    return again
