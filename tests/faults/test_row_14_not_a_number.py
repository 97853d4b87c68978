"""NaN in a loss ends the stage with step and learning rate; nothing of it is stored."""

from __future__ import annotations

import re

from tests.end_to_end.running import QUIET, files_in, run_here


def test_row_14_a_loss_that_is_no_number_names_step_and_learning_rate(tmp_path):
    store, quick = tmp_path / "store", ("model=mlp", "trainer=debug", "trainer.threads=1")
    rate = "recipe.stages.train.optimizer.lr=1e9"
    done = run_here(["recipe=baseline", rate, *quick, QUIET[2]], tmp_path, store)
    assert done.code == 3
    assert re.search(r"not finite at step \d+ of \d+, learning rate [\d.e+]+", done.line)
    assert not [name for name in files_in(store) if name.endswith("artifact.json")]
