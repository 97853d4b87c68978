"""What `compress` refuses, in one line, before anything is written."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from tests.api.conftest import DATA, NET, PIXELS, Net, compress

MISTAKES = {
    "model=smal_cnn: no such option; did you mean small_cnn?": ("smal_cnn", "digits"),
    "recipe=quantise: no such option; did you mean quantize?": (NET, DATA, "quantise"),
    "data='digit': no such dataset or folder; did you mean digits?": (NET, "digit"),
    "model must be a torch module or a name, got type": (Net, DATA),
    "trained=True is for a module in hand": ("small_cnn", DATA, "quantize", {}, {"trained": True}),
    "uint8 images would be normalised anew": (NET, PIXELS, "quantize", {}, {"trained": True}),
    "trainer.devices=2: other processes do not see a module or data in hand":
        (NET, DATA, "quantize", {"trainer.devices": 2}),
    "overrides: model.width: the model is a module in hand": (NET, DATA, "quantize",
                                                             {"model.width": 3}),
    "overrides: dataset.flip: data in hand have the options validation_fraction":
        (NET, DATA, "quantize", {"dataset.flip": False}),
    "overrides: hydra.run.dir: the run folder is the argument `folder`":
        (NET, DATA, "quantize", {"hydra.run.dir": "x"}),
    "overrides: plan: a plan is for the command line": (NET, DATA, "quantize", {"plan": True}),
    "recipe is given twice": (NET, DATA, "quantize", {"recipe": "prune"}),
    "recipe.stages.quantize.bitz: no such key": (NET, DATA, "quantize",
                                                 {"recipe.stages.quantize.bitz": 4}),
    "overrides: <object object at": (NET, DATA, "quantize", {"seed": object()}),
    "class_names is for data in hand": (NET, "digits", "quantize", {}, {"class_names": ["a"]}),
    "config_dir=nowhere: there is no such folder": (NET, DATA, "quantize", {},
                                                    {"config_dir": "nowhere"}),
    "tracking=mlflow: no such option": (NET, DATA, "quantize", {}, {"tracking": "mlflow"}),
    "model maps [2, 1, 8, 8] to [2, 10], but dataset in_hand has 12 classes":
        (NET, DATA, "quantize", {}, {"class_names": [str(n) for n in range(12)]}),
    "model fails on inputs [2, 3, 8, 8]": (NET, (torch.zeros(60, 3, 8, 8), DATA[1])),
    "recipe.stages.distill.model=student: model.student must list": (NET, DATA, "distill"),
    "model: LazyLinear has lazy parameters": (nn.LazyLinear(2), DATA),
}  # fmt: skip


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(line, tmp_path):
    model, data, *more = MISTAKES[line]
    recipe, overrides, arguments = [*more, *["quantize", {}, {}][len(more) :]]
    with pytest.raises(UserError) as caught:
        compress(model, data, recipe, overrides=overrides, **arguments)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_module_is_refused():
    traced = torch.jit.trace(Net().eval(), DATA[0])
    with pytest.raises(UserError, match=r"is a TorchScript module: give the module it was made of"):
        compress(traced, DATA)


def test_a_module_that_holds_nan_is_refused(tmp_path):
    net = deepcopy(NET)
    net.head.bias.data[3] = float("nan")
    with pytest.raises(UserError, match=r"model: head.bias holds NaN or infinity"):
        compress(net, DATA)
