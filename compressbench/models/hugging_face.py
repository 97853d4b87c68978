"""Image and text classifiers of Hugging Face transformers (an extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.extras import extra
from compressbench.core.nearest import nearest_of_many

_REMOTE = {"auto_map", "attn_implementation"}  # code or kernels, which a hub may have


class HuggingFaceImages(nn.Module):
    """An image classifier with random weights, built from the `config` of a transformers model.

    `config` has the content of the model's config.json: `model_type` and the options of that type.
    Nothing is downloaded and no remote code is executed; weights come from a `checkpoint` file,
    such as the model.safetensors next to that config.json. The numbers of classes and channels are
    those of the data, and so is the image size unless `config` sets it. Maps [B, C, H, W] to
    logits [B, num_classes].
    """

    libraries: ClassVar[tuple[str, ...]] = ("transformers",)

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        settings = _configured(config, num_classes, {"num_channels": input_shape[0]})
        if hasattr(settings, "image_size") and "image_size" not in config:
            settings.image_size = list(input_shape[1:])
        self.network = _network("AutoModelForImageClassification", settings)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


class HuggingFaceTexts(nn.Module):
    """A text classifier built from the `config` of a transformers model (see `HuggingFaceImages`).

    Maps ids int64 [B, L] to logits [B, num_classes]. Attention ignores ids equal to `pad`, except
    for the first id of a text. `vocab_size` is that of the data unless `config` sets it.
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
        fixed = {"pad_token_id": pad, "vocab_size": config.get("vocab_size", vocabulary)}
        settings = _configured(config, num_classes, fixed)
        (length,) = input_shape
        for name, needed in {"vocab_size": vocabulary, "max_position_embeddings": length}.items():
            value = getattr(settings, name, needed)
            if value < needed:
                raise UserError(f"config.{name}={value}: the data need at least {needed}")
        self.pad = pad
        self.network = _network("AutoModelForSequenceClassification", settings)

    def forward(self, ids: Tensor) -> Tensor:
        first = torch.arange(ids.shape[1], device=ids.device) == 0
        kept = ((ids != self.pad) | first).long()
        logits: Tensor = self.network(input_ids=ids, attention_mask=kept).logits
        return logits


def described(config: Any) -> Any:
    """The content of a config.json without what names code, kernels or its origin, at any depth;
    private keys (`_name_or_path`, `_attn_implementation`, ...) are all of these kinds.
    """
    if isinstance(config, Mapping):
        kept = {k: v for k, v in config.items() if k not in _REMOTE and not str(k).startswith("_")}
        return {name: described(value) for name, value in kept.items()}
    return [described(item) for item in config] if isinstance(config, (list, tuple)) else config


def _configured(config: Mapping[str, Any], num_classes: int, fixed: Mapping[str, Any]) -> Any:
    """The configuration object; raises UserError for an unknown type or option."""
    transformers = extra("transformers", "huggingface")
    given = {k: v for k, v in described(config).items() if k != "model_type"}
    kind, types = config.get("model_type"), sorted(transformers.CONFIG_MAPPING)
    if kind not in types:
        near = nearest_of_many(str(kind), types)
        raise UserError(f"config.model_type={kind} is unknown{near}")
    plain = transformers.AutoConfig.for_model(kind)
    for name in given:
        if not hasattr(plain, name):  # transformers would silently ignore it
            near = nearest_of_many(name, plain.to_dict())
            raise UserError(f"config.{name} is not an option of {kind}{near}")
    options = {**given, **fixed, "num_labels": num_classes}
    try:
        return transformers.AutoConfig.for_model(kind, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"config: {_first_line(error)}") from error


def _network(auto: str, config: Any) -> nn.Module:
    """Build a model with an auto class of transformers, without remote code."""
    transformers = extra("transformers", "huggingface")
    try:
        network: nn.Module = getattr(transformers, auto).from_config(
            config, trust_remote_code=False
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"config: {_first_line(error)}") from error
    except ImportError as error:  # transformers imports other libraries, which may be broken
        raise UserError(f"transformers cannot be used: {_first_line(error)}") from error
    return network


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split()[:40])
