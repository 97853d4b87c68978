"""Bits and sparsities out of range, and recipes that cannot work, are refused before training."""

from __future__ import annotations

import re

import pytest

from tests.end_to_end.refusals import quiet
from tests.end_to_end.running import QUIET, write_recipe

PRUNE, QUANTIZE = "recipe.stages.prune", "recipe.stages.quantize"
TEACHER = "recipe.stages.distill.teacher"
OUT_OF_RANGE = [
    *[
        ([f"{PRUNE}.sparsity={value}"], rf"sparsity must be a number in \[0, 1\), got {shown}")
        for value, shown in (("1.0", "1.0"), ("nan", "nan"), ("-0.1", "-0.1"), ("abc", "'abc'"))
    ],
    *[
        ([f"{QUANTIZE}.bits={value}"], rf"bits must be an integer in \[2, 8\], got {shown}")
        for value, shown in (("0", "0"), ("33", "33"), ("4.5", "4.5"), ("abc", "'abc'"))
    ],
    (["recipe=quantize", f"{QUANTIZE}.bits=1"], r"bits must be an integer in \[2, 8\], got 1"),
    (
        ["recipe=quantize", f"{QUANTIZE}.activation_bits=3"],
        r"activation_bits .* in \[4, 8\], got 3",
    ),
    (["recipe=quantize", QUANTIZE + ".rules=[{type: Conv2d, bits: 9}]"], r"rules\[0\]: bits must"),
    (["recipe=prune_gradual", f"{PRUNE}.sparsity=1.0"], r"sparsity must be a number in \[0, 1\)"),
    (["recipe=quant_then_prune", f"{PRUNE}.sparsity=0.6"], "at most 0.5, got 0.6"),
    (["recipe=quant_then_prune", f"{QUANTIZE}.bits=4"], "needs 8-bit weights, got bits=4"),
]
IMPOSSIBLE = [
    (["recipe=prune", "~recipe.stages.train"], "prune needs a model that is trained"),
    (["recipe=distill", f"{TEACHER}=trian"], "teacher=trian is not a stage before .* mean train?"),
    (["recipe=distill", f"{TEACHER}=distill"], "teacher=distill is not a stage before distill"),
    (["recipe=distill", f"{TEACHER}=null"], "distill.teacher is required"),
    (
        [
            "recipe=distill",
            "model@recipe.stages.distill.model=mlp",
            "+recipe.stages.distill.model.num_classes=7",
        ],
        "num_classes=7, but dataset digits has 10 classes: teacher, student",
    ),
]


def named(cases):
    ids = [" ".join(arguments) for arguments, _ in cases]
    return pytest.mark.parametrize(("arguments", "message"), cases, ids=ids)


@named(OUT_OF_RANGE)
def test_row_12_bits_and_sparsity_out_of_range_are_refused(refused, arguments, message):
    assert re.search(message, refused(*quiet(arguments)))


@named(IMPOSSIBLE)
def test_row_13_a_recipe_that_cannot_work_is_refused(refused, arguments, message):
    assert re.search(message.replace("?", r"\?"), refused(*quiet(arguments)))


def test_row_13_an_impossible_order_is_refused_with_one_that_works(refused, tmp_path):
    mine = write_recipe(tmp_path / "conf", "mine", "train", "quantize", "finetune")
    line = refused(mine, "recipe=mine", *QUIET)
    assert "finetune would undo what quantize did (activation-quantized)" in line
    assert "an order that works: train, finetune, quantize" in line
