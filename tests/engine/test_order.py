"""Order rules on stand-in stages: only what a stage needs, adds and destroys matters."""

from dataclasses import dataclass, field

import pytest

from compressbench.core.errors import UserError
from compressbench.core.types import (
    ACTIVATION_QUANTIZED,
    CHANNEL_PRUNED,
    MASKED,
    TRAINED,
    WEIGHT_QUANTIZED,
)
from compressbench.engine.order import check_order


@dataclass
class Fake:
    needs: frozenset = field(default_factory=frozenset)
    adds: frozenset = field(default_factory=frozenset)
    destroys: frozenset = field(default_factory=frozenset)


GRIDS = frozenset({WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED})
NEEDS = frozenset({TRAINED})
STAGES = {
    "train": Fake(adds=frozenset({TRAINED}), destroys=GRIDS),
    "prune": Fake(NEEDS, frozenset({MASKED})),
    "channels": Fake(NEEDS, frozenset({CHANNEL_PRUNED}), GRIDS),
    "finetune": Fake(NEEDS, frozenset(), GRIDS),
    "quantize": Fake(NEEDS, GRIDS, GRIDS),
}


def order(*names):
    check_order({n: STAGES[n] for n in names}, frozenset({"train"}))


@pytest.mark.parametrize(
    "names",
    [
        ("train",),
        ("train", "prune", "finetune", "quantize"),
        ("train", "quantize", "prune"),
        ("train", "channels", "prune", "quantize"),
    ],
)
def test_allows(names):
    order(*names)


@pytest.mark.parametrize(
    ("names", "reason", "advice"),
    [
        (("prune", "train"), "prune needs a model that is trained", "train, prune"),
        (
            ("train", "quantize", "finetune"),
            r"finetune would undo what quantize did \(activation-quantized\)",
            "train, finetune, quantize",
        ),
        (
            ("train", "prune", "quantize", "channels"),
            "channels would undo what quantize did",
            "train, prune, channels, quantize",
        ),
    ],
)
def test_refuses_with_the_nearest_legal_order(names, reason, advice):
    with pytest.raises(UserError, match=reason) as caught:
        order(*names)
    assert str(caught.value).endswith(f"an order that works: {advice}")


def test_a_fresh_student_forgets_what_its_teacher_was():
    stages = {"train": STAGES["train"], "quantize": STAGES["quantize"], "student": Fake(
        adds=frozenset({TRAINED}), destroys=GRIDS)}  # fmt: skip
    with pytest.raises(UserError, match="student would undo"):
        check_order(stages, frozenset({"train"}))
    check_order(stages, frozenset({"train", "student"}))
