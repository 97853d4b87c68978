"""Image classifiers of timm (an extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.extras import extra
from compressbench.core.nearest import nearest_of_many


class Timm(nn.Module):
    """The timm model `name` (Wightman 2019) with random weights, for the data's shape and classes.

    Nothing is downloaded; weights come from a `checkpoint` file with a state dict of timm.
    `options` are passed to the model, for example `{img_size: 32}` for vision transformers. Maps
    [B, C, H, W] to logits [B, num_classes].
    """

    libraries: ClassVar[tuple[str, ...]] = ("timm",)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        name: str = "resnet18",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        timm = extra("timm", "timm")
        known = timm.list_models()
        if name not in known:
            raise UserError(f"timm has no model {name!r}{nearest_of_many(str(name), known)}")
        given = {"pretrained": False, "num_classes": num_classes, "in_chans": input_shape[0]}
        taken = sorted(set(options or {}) & {*given, "checkpoint_path", "pretrained_cfg"})
        if taken:
            raise UserError(f"options.{taken[0]} cannot be set: data and `checkpoint` determine it")
        try:
            self.network: nn.Module = timm.create_model(name, **given, **(options or {}))
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"{name}: {str(error).partition(chr(10))[0]}") from error

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits
