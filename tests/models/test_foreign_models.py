"""Models of timm and transformers, where these are installed: built, loaded, refused."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from safetensors.torch import save_file

from compressbench.config.instantiate import instantiate
from compressbench.core.errors import UserError
from compressbench.models.checkpoint import load_checkpoint_
from compressbench.models.hugging_face import HuggingFaceImages, HuggingFaceTexts
from compressbench.models.timm_model import Timm

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 24}  # fmt: skip
RESNET = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 4,
          "hidden_sizes": [4, 8], "depths": [1, 1]}  # fmt: skip


def needs(library):
    """Skip where `library` cannot be imported, and say why."""
    try:
        importlib.import_module(library)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{library}: {error}")


def texts(config=BERT, length=9, vocabulary=40, pad=0):
    torch.manual_seed(0)
    return HuggingFaceTexts([length], 4, vocabulary, pad, config).eval()


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    config = {"_target_": "compressbench.models.timm_model.Timm", "name": "resnet18"}
    with pytest.raises(UserError, match=r"^model: timm is not installed: pip .*'\.\[timm\]' in"):
        instantiate(config | {"input_shape": [1, 8, 8], "num_classes": 2}, "model")


def test_texts_become_logits_that_padding_does_not_change():
    needs("transformers")
    model, ids = texts(), torch.randint(1, 40, (3, 6))
    padded = torch.cat([ids, torch.zeros(3, 3, dtype=torch.int64)], 1)
    with torch.no_grad():
        exact, found = model(ids), model(padded)
        empty = model(torch.zeros_like(padded))
    assert exact.shape == (3, 4)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(empty).all()


def test_images_become_logits():
    needs("transformers")
    torch.manual_seed(0)
    vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "patch_size": 4,
           "num_attention_heads": 2, "intermediate_size": 24}  # fmt: skip
    for config in (RESNET, vit):
        model = HuggingFaceImages([1, 8, 8], 10, config).eval()
        assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_weights_come_from_a_file_as_the_library_saves_it(tmp_path):
    needs("transformers")
    torch.manual_seed(1)
    other = HuggingFaceImages([1, 8, 8], 10, RESNET).eval()
    save_file(other.network.state_dict(), tmp_path / "model.safetensors")
    model = HuggingFaceImages([1, 8, 8], 10, RESNET).eval()
    images = torch.randn(2, 1, 8, 8)
    assert not torch.equal(model(images), other(images))
    load_checkpoint_(model, tmp_path / "model.safetensors")
    assert torch.equal(model(images), other(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: texts({"model_type": "brt"}),
            "model_type=brt is unknown; the nearest name is ",
        ),
        (lambda: texts({}), "config.model_type=None is unknown"),
        (
            lambda: texts(BERT | {"hiden_size": 8}),
            "of bert; the nearest name is hidden_size",
        ),
        (lambda: texts(BERT | {"hidden_size": 15}), "config: .*multiple"),
        (lambda: texts(BERT | {"vocab_size": 7}), "config.vocab_size=7: the data need at least 40"),
        (lambda: texts(BERT | {"max_position_embeddings": 8}), "at least 9"),
        (lambda: texts({"model_type": "resnet"}), "config: "),
        (lambda: HuggingFaceImages([1, 8, 8], 2, {"model_type": "bert"}), "config: "),
    ],
)
def test_refuses_a_config_that_cannot_work(make, message):
    needs("transformers")
    with pytest.raises(UserError, match=message):
        make()


def test_timm_by_name():
    needs("timm")
    model = Timm([1, 32, 32], 7, "resnet18").eval()
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(UserError, match="timm has no model 'resnet81'; the nearest name is resnet"):
        Timm([1, 32, 32], 7, "resnet81")
    with pytest.raises(UserError, match=r"options.pretrained cannot be set"):
        Timm([1, 32, 32], 7, "resnet18", {"pretrained": True})
