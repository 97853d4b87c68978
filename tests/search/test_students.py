"""A sweep may search the student: its width, its depth, its architecture; the teacher is shared."""

from __future__ import annotations

from compressbench.config.compose import compose_config
from compressbench.config.groups import config_folder
from compressbench.core.types import Runtime
from compressbench.data.digits import Digits
from compressbench.engine.plan import make_plan
from compressbench.search.space import every, overrides, parse

CONF = [config_folder()]
STUDENT = "recipe.stages.distill.model"


def configs(*arguments):
    """The config of each setting of the space that `arguments` describe."""
    space, fixed = parse(arguments, CONF)
    found = every(space, lambda options: compose_config([*fixed, *options], CONF))
    return [compose_config([*fixed, *overrides(space, settings)], CONF) for settings in found]


def plans(*arguments):
    return [plan(config) for config in configs(*arguments)]


def plan(config):
    stages, data = config["recipe"]["stages"], Digits()
    made = make_plan(
        stages,
        model=config["model"],
        dataset=config["dataset"],
        data=data,
        runtime=Runtime(),
        seed=0,
    )
    return {planned.name: planned for planned in made}


def test_width_and_depth_of_the_student_are_searched_and_its_teacher_trained_once():
    chosen = ("recipe=distill", f"model@{STUDENT}=small_cnn")
    found = configs(*chosen, f"{STUDENT}.width=range(4,9,4)", f"{STUDENT}.depth=choice(1,2)")
    models = [config["recipe"]["stages"]["distill"]["model"] for config in found]
    assert [(m["width"], m["depth"]) for m in models] == [(4, 1), (4, 2), (8, 1), (8, 2)]
    one, other = plan(found[0]), plan(found[-1])
    assert one["train"].key == other["train"].key
    assert one["distill"].key != other["distill"].key
    assert other["distill"].job.model["depth"] == 2


def test_the_architecture_of_the_student_is_searched():
    found = plans(f"+model@{STUDENT}=choice(small_cnn,mlp)", "recipe=baseline",
                  "+stage@recipe.stages.distill=distill")  # fmt: skip
    assert [type(p["distill"].begins_with).__name__ for p in found] == ["SmallCnn", "Mlp"]
    assert len({p["train"].key for p in found}) == 1


def test_an_assistant_stands_between_teacher_and_student():
    (chain,) = plans("recipe=distill_assistant")
    assert chain["assistant"].parents == {"teacher": "train"}
    assert chain["distill"].parents == {"teacher": "assistant"}
    sizes = [sum(p.numel() for p in planned.begins_with.parameters()) for planned in chain.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_a_teacher_that_stops_early_is_the_same_one_trained_for_less():
    (early,), (full,) = plans("recipe=distill_early"), plans("recipe=distill")
    ours, theirs = (p["train"].job.config for p in (early, full))
    assert ours | {"epochs": theirs["epochs"]} == theirs
    assert ours["epochs"] < theirs["epochs"]
