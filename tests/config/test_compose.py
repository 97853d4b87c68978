"""The config of a trial: what Hydra composes, however it was come by."""

import pytest

from compressbench.config import compose
from compressbench.config.compose import compose_config
from compressbench.config.groups import config_folder
from compressbench.config.overrides import composed_by_hydra
from compressbench.core.errors import UserError

FOLDERS = (config_folder(),)
STAGE = "recipe.stages"
CASES = [
    [],
    ["seed=3"],
    ["recipe=prune", f"{STAGE}.prune.sparsity=0.8"],
    ["recipe=prune", f"{STAGE}.prune.sparsity=0.8", f"{STAGE}.prune.sparsity=0.9"],
    ["recipe=prune", f"{STAGE}.prune.skip=[conv1,fc]", "trainer.threads=1"],
    ["recipe=prune", f"{STAGE}.prune.layers=null", "trainer.devices=1"],
    ["recipe=prune", f"criterion@{STAGE}.prune.criterion=taylor", f"{STAGE}.prune.scope=layer"],
    ["recipe=prune", f"{STAGE}.prune.scope=layer", f"criterion@{STAGE}.prune.criterion=taylor"],
    ["recipe=quantize", f"+{STAGE}.quantize.rules=[{{layers: fc, bits: 8}}]",
     f"{STAGE}.quantize.bits=4"],
    ["recipe=qat", f"+{STAGE}.qat.widths.fc=8", f"{STAGE}.qat.bits=3", f"{STAGE}.qat.epochs=0.5"],
    ["recipe=prune", f"~{STAGE}.finetune", f"{STAGE}.prune.sparsity=0.8"],
    ["recipe=distill", "model=text_transformer", "model.width=64", "model.student={width: 32}"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_is_what_hydra_composes(overrides):
    plain = compose._plain(composed_by_hydra(overrides, FOLDERS, own_section=True))
    for _ in range(2):  # the second time from what was composed before
        assert compose_config(overrides, FOLDERS) == plain


def test_values_do_not_leak_into_other_trials():
    def sparsity(*overrides):
        config = compose_config(["recipe=prune", *overrides], FOLDERS)
        return config["recipe"]["stages"]["prune"]["sparsity"]

    assert sparsity("trainer.threads=1") == sparsity("trainer.threads=2")
    assert sparsity(f"{STAGE}.prune.sparsity=0.11") == 0.11
    assert sparsity("trainer.threads=1") != 0.11


def test_groups_are_composed_once_for_all_values(monkeypatch):
    composed = []
    counted = lambda o, f, **k: composed.append(o) or composed_by_hydra(o, f, **k)  # noqa: E731
    monkeypatch.setattr(compose, "composed_by_hydra", counted)
    for bits in (2, 3, 4, 8):
        compose_config(["recipe=quantize", "seed=77", f"{STAGE}.quantize.bits={bits}"], FOLDERS)
    assert len(composed) == 1


@pytest.mark.parametrize(
    ("override", "named"),
    [(f"{STAGE}.prune.sparsty=0.8", "sparsty"), (f"{STAGE}.prun.sparsity=0.8", "prun")],
)
def test_a_mistake_in_a_value_is_said_as_hydra_says_it(override, named):
    with pytest.raises(UserError, match=named):
        compose_config(["recipe=prune", override], FOLDERS)


def test_a_config_that_uses_its_command_line_as_text_sees_all_of_it(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "named.yaml").write_text(
        "defaults: [small_cnn]\ncheckpoint: ${hydra:job.override_dirname}.safetensors\n"
    )
    folders = (*FOLDERS, tmp_path)
    for bits in (2, 3):
        config = compose_config(
            ["recipe=quantize", "model=named", f"{STAGE}.quantize.bits={bits}"], folders
        )
        assert f"bits={bits}" in config["model"]["checkpoint"]


def test_a_transformer_chooses_the_optimizer_of_all_stages_and_can_be_overruled():
    def targets(*overrides):
        recipe = ["recipe=prune_then_qat", "dataset=ag_news", "model=text_transformer"]
        stages = compose_config([*recipe, *overrides], FOLDERS)["recipe"]["stages"]
        return [s["optimizer"]["_target_"] for s in stages.values() if "optimizer" in s]

    adamw, sgd = "torch.optim.AdamW", "torch.optim.SGD"
    assert targets() == [adamw] * 3
    assert targets("optimizers@_global_=sgd") == [sgd] * 3
    assert targets(f"optimizer@{STAGE}.qat.optimizer=sgd_qat") == [adamw, adamw, sgd]


def test_a_checkpoint_can_be_given_to_a_model_whose_yaml_has_no_such_key(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# mine\n_target_: mine.Net\n")
    folders = [config_folder(), tmp_path]
    for overrides in (
        ["model=mine", "model.checkpoint=a.pt"],
        ["model=small_cnn", "model.checkpoint=a.pt", "seed=1"],
    ):
        assert compose_config(overrides, folders)["model"]["checkpoint"] == "a.pt"
    overrides = ["recipe=distill", "model@recipe.stages.distill.model=mine",
                 "recipe.stages.distill.model.checkpoint=b.pt"]  # fmt: skip
    stage = compose_config(overrides, folders)["recipe"]["stages"]["distill"]
    assert stage["model"] == {"_target_": "mine.Net", "checkpoint": "b.pt"}
