"""A recipe.yaml that was written before modules moved is replayed under their present names."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.running import run_here

RECIPE = Path(__file__).with_name("recipe_before_the_move.yaml")  # of prune_then_qat; plan: true


def test_it_is_laid_out_as_it_was(tmp_path):
    assert "compressbench.stages.qat.QuantizeAware" in RECIPE.read_text()
    done = run_here(["replay", str(RECIPE)], tmp_path, tmp_path / "store")
    assert done.code == 0, done.err
    stages = [line.split()[:2] for line in done.out.splitlines() if " miss " in line]
    assert stages == [
        ["train", "train"],
        ["prune", "prune"],
        ["finetune", "finetune"],
        ["qat", "quantizeaware"],
    ]
