"""Classifiers of images and of texts by Hugging Face's transformers (an extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.extras import extra
from compressbench.core.nearest import nearest_of_many

_REMOTE = {"auto_map", "_name_or_path"}  # of a config.json: where it came from


class HuggingFaceImages(nn.Module):
    """An image classifier as `config` describes it, with random weights.

    `config` is what stands in the config.json of a model: `model_type` and the options of that
    type. Nothing is fetched and no foreign code runs: weights come from a `checkpoint` file, such
    as the model.safetensors beside that config.json. Number of classes and channels, and the size
    where `config` says none, are those of the data. Maps [B, C, H, W] to logits [B, num_classes].
    """

    libraries: ClassVar[tuple[str, ...]] = ("transformers",)

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        made = _configured(config, num_classes, {"num_channels": input_shape[0]})
        if hasattr(made, "image_size") and "image_size" not in config:
            made.image_size = list(input_shape[1:])
        self.network = _network("AutoModelForImageClassification", made)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


class HuggingFaceTexts(nn.Module):
    """A classifier of texts as `config` describes it, see `HuggingFaceImages`.

    Maps ids int64 [B, L] to logits [B, num_classes]. Ids that are `pad` are not attended to, but
    for the first of a text. `vocab_size` is that of the data where `config` says none.
    """

    libraries: ClassVar[tuple[str, ...]] = ("transformers",)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        vocabulary: int,
        pad: int,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        own = {"pad_token_id": pad, "vocab_size": config.get("vocab_size", vocabulary)}
        made = _configured(config, num_classes, own)
        (length,) = input_shape
        for name, needed in {"vocab_size": vocabulary, "max_position_embeddings": length}.items():
            found = getattr(made, name, needed)
            if found < needed:
                raise UserError(f"config.{name}={found}: the data need at least {needed}")
        self.pad = pad
        self.network = _network("AutoModelForSequenceClassification", made)

    def forward(self, ids: Tensor) -> Tensor:
        first = torch.arange(ids.shape[1], device=ids.device) == 0
        kept = ((ids != self.pad) | first).long()
        logits: Tensor = self.network(input_ids=ids, attention_mask=kept).logits
        return logits


def _configured(config: Mapping[str, Any], num_classes: int, own: Mapping[str, Any]) -> Any:
    """The configuration object; UserError for a type or an option that there is not."""
    transformers = extra("transformers", "huggingface")
    given = {k: v for k, v in config.items() if k not in _REMOTE | {"model_type"}}
    kind, types = config.get("model_type"), sorted(transformers.CONFIG_MAPPING)
    if kind not in types:
        near = nearest_of_many(str(kind), types)
        raise UserError(f"config.model_type={kind} is unknown{near}")
    plain = transformers.AutoConfig.for_model(kind)
    for name in given:
        if not hasattr(plain, name):  # it would be taken, and ignored
            near = nearest_of_many(name, plain.to_dict())
            raise UserError(f"config.{name}: no option of {kind}{near}")
    options = {**given, **own, "num_labels": num_classes}
    try:
        return transformers.AutoConfig.for_model(kind, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"config: {_first_line(error)}") from error


def _network(auto: str, config: Any) -> nn.Module:
    """The model of one of transformers' automatic classes, without foreign code."""
    transformers = extra("transformers", "huggingface")
    try:
        made: nn.Module = getattr(transformers, auto).from_config(config, trust_remote_code=False)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"config: {_first_line(error)}") from error
    except ImportError as error:  # of a library that it found beside it, and that is broken
        raise UserError(f"transformers cannot be used: {_first_line(error)}") from error
    return made


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split()[:40])
