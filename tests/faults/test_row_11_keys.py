"""Row 11: a key that there is not, or that is given twice, is refused with the nearest name."""

from __future__ import annotations

import re

import pytest

from tests.end_to_end.running import run_here

PRUNE = "recipe.stages.prune"
MISTAKES = [
    ([f"{PRUNE}.sparsty=0.5"], rf"{PRUNE}.sparsty: no such key; did you mean {PRUNE}.sparsity?"),
    ([f"+{PRUNE}.sparsty=0.5"], rf"{PRUNE}.sparsty: no such option; did you mean sparsity?"),
    (["sed=1"], "sed: no such key; did you mean seed?"),
    (["+typo=1"], "typo: no such key"),
    (["+trainer.thread=1"], "trainer.thread: no such option; did you mean threads?"),
    (["~recipe"], r"~recipe: only stages can be taken away \(~recipe.stages.NAME\)"),
    (["~recipe.stages.trai"], "recipe.stages.trai: no such key; did you mean recipe.stages.train?"),
    (["~recipe.stages.train", "~recipe.stages.train"], "recipe.stages.train is given twice"),
    (
        ["recipe=prune", "~recipe.stages.finetune", "recipe.stages.finetune.epochs=2"],
        "recipe.stages.finetune.epochs=2: ~recipe.stages.finetune takes that stage away",
    ),
    (
        ["-m", "recipe=prune", "~recipe.stages.finetune", "seed=1,2"],
        "~recipe.stages.finetune: a plain grid cannot leave out a stage; use a search",
    ),
    (["seed=1", "seed=2"], "seed is given twice: seed=1 and seed=2"),
    (["recipe=prune", "+recipe=quantize"], "recipe is given twice"),
    (["seed=1", "+seed=2"], "seed is given twice: seed=1 and [+]seed=2"),
    (["trainer=debug", "trainer=cpu"], "trainer is given twice"),
    (["~dataset.metric"], r"~dataset.metric: only stages can be taken away"),
    (["++trainer.thread=1"], "trainer.thread: no such option; did you mean threads?"),
    (["+recipe.stages.prune.criterion.alfa=1"], "alfa: no such option"),
    (["trackin=none"], "trackin.* did you mean tracking?"),
    (["criteron@recipe.stages.prune.criterion=l2"], "criteron"),
    (["search.trials=3"], "search.trials: no such key; did you mean search.n_trials?"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_row_11_a_key_that_is_wrong_is_refused(tmp_path, arguments, message):
    given = {argument.partition("=")[0].lstrip("+~") for argument in arguments}
    quiet = [q for q in ("trainer=cpu", "tracking=none") if q.partition("=")[0] not in given]
    done = run_here([*arguments, *quiet], tmp_path, tmp_path / "store")
    assert done.code == 1
    assert re.search(message.replace("?", r"\?"), done.line), done.line
    assert not any(tmp_path.iterdir())


def test_row_11_a_key_given_twice_in_a_file_is_refused(tmp_path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "mine.yaml").write_text("# @package _global_\nseed: 1\nseed: 2\n")
    done = run_here(["--config-dir=.", "+extra=mine"], tmp_path, tmp_path / "store")
    assert done.code == 1
    assert "duplicate key seed" in done.line
