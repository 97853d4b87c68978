"""Letters that paths may have."""

from __future__ import annotations

import pytest

from tests.end_to_end.running import finished_run


@pytest.mark.parametrize("name", ["with a space", "größer-模型"])
def test_odd_letters_in_paths(tmp_path, digits_run, digits_store, name):
    digits_run("baseline")
    folder = tmp_path / name
    folder.mkdir()
    store = folder / "store"
    store.symlink_to(digits_store)
    first = digits_run("baseline")
    assert finished_run(first.arguments, folder, store).onnx == first.onnx
