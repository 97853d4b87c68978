"""What flows between the parts: artifacts, measurements, steps; the plug-ins' protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

SplitName = Literal["train", "validation", "test"]
Edit = dict[str, Any]

# What a stage may establish in a model. The order rules of a recipe are written in these words.
TRAINED = "trained"
MASKED = "masked"
CHANNEL_PRUNED = "channel-pruned"
WEIGHT_QUANTIZED = "weight-quantized"
ACTIVATION_QUANTIZED = "activation-quantized"
QUANTIZED = frozenset({WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED})  # what changing weights destroys


@dataclass(frozen=True)
class Tokens:
    """What the inputs of a text are: ids in [0, `vocabulary`), `pad` behind the last one of a
    short text. `tokenizer` is the SHA-256 of the tokenizer.json that makes ids of text.
    """

    vocabulary: int
    pad: int
    tokenizer: str


@dataclass(frozen=True)
class DataSpec:
    """What a model and the exported file need to know of a dataset.

    `input_shape` is one sample without the batch axis, (channels, height, width) for images,
    (tokens,) for texts. `mean` and `std` are per channel, in units of inputs scaled to [0, 1];
    empty for texts, which have `tokens`, and for floats that are taken as they are.
    """

    name: str
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metric: str = "accuracy"
    tokens: Tokens | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def blank(self, count: int) -> Tensor:
        """`count` samples as a model takes them, float32 zeros or one id that is no padding:
        enough to see which functions it calls.
        """
        if self.tokens is None:
            return torch.zeros(count, *self.input_shape)
        return torch.full((count, *self.input_shape), int(self.tokens.pad == 0))

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` random samples as a model takes them: normal numbers, or any ids."""
        shape = (count, *self.input_shape)
        if self.tokens is None:
            return torch.randn(shape, generator=generator)
        return torch.randint(self.tokens.vocabulary, shape, generator=generator)


@dataclass(frozen=True)
class Split:
    """One split in memory: `inputs` uint8 [N, C, H, W], float32 [N, ...], or ids of any integer
    type [N, L]; `targets` int64 [N].
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


class Data(Protocol):
    """A dataset, decoded once and held in memory.

    It may also have `companions() -> dict[str, str]`: text files, by name, that ship beside the
    model.
    """

    @property
    def spec(self) -> DataSpec: ...

    def manifest(self) -> dict[str, Any]:
        """Plain JSON that changes when the data does: file digests, splits, transforms."""
        ...

    def verify(self) -> None:
        """Raise CheckFailedError when the files are no longer those of the manifest."""
        ...

    def split(self, name: SplitName) -> Split: ...

    def prepare(self, inputs: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> what the model takes, float32 normalised, on the same device;
        float32 -> a copy; ids [B, L] -> int64.
        """
        ...

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Random training transforms of one batch, on its device and of its type."""
        ...


@dataclass(frozen=True)
class Runtime:
    """Where and how fits run. Every field counts in the content key of a stage."""

    accelerator: Literal["cpu", "gpu"] = "cpu"
    devices: int = 1
    precision: str = "32-true"
    threads: int = 1
    max_batches: int | None = None  # a cap per epoch and per calibration, for smoke tests

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")


@dataclass(frozen=True)
class Artifact:
    """A model that runs, and what is needed to build it again.

    `model` runs in float with masks and fake-quantizers in place. `edits` turn the freshly
    configured architecture of `model_config` into this one; they are plain JSON, in order.
    `early` are the tensors of an early epoch, where training was asked to keep it.
    """

    model: nn.Module
    model_config: Mapping[str, Any]
    edits: tuple[Edit, ...]
    properties: frozenset[str]
    key: str = ""
    early: Mapping[str, Tensor] = field(default_factory=dict)

    def changed(
        self, model: nn.Module, edits: Iterable[Edit] = (), adds: Iterable[str] = ()
    ) -> Artifact:
        """The artifact that a stage makes of this one: `model`, which takes `edits` more to build
        and has the properties `adds`. It has no key yet.
        """
        return replace(
            self,
            model=model.eval(),
            edits=(*self.edits, *edits),
            properties=self.properties.union(adds),
            key="",
        )


@dataclass(frozen=True)
class Coverage:
    """What a stage did to one layer. `touched` counts weights, out of `total`."""

    layer: str
    kind: str
    total: int
    touched: int
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a stage hands back. `history` is one list of figures per name, one figure an epoch.

    `tables` hold rows of plain JSON, all with the same columns, by the name of the table. `notes`
    are lines about how it was done.
    """

    artifact: Artifact
    coverage: tuple[Coverage, ...] = ()
    history: Mapping[str, list[float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """Figures of an exported file, by the names of the design (`size/onnx_bytes`, ...)."""

    figures: Mapping[str, float]
    warnings: tuple[str, ...] = ()


# what a result depends on besides the stage's start, plain JSON, and how to compute it -> that
# result, plain JSON, from the store where a stage has computed it before
Recall = Callable[[Mapping[str, Any], Callable[[], Any]], Any]
TimeShare = Callable[[Artifact], float]  # one call's time over another's: both exported, in pairs


@dataclass(frozen=True)
class Context:
    """What a stage gets from above. `seed` is the stage's own; `folder` is scratch space."""

    data: Data
    runtime: Runtime
    seed: int
    folder: Path
    build: Callable[[Mapping[str, Any]], Any]  # a `_target_` config -> the object
    progress: Callable[[int, int, str], None] = lambda done, total, text: None
    export_bytes: Callable[[Artifact], int] | None = None  # bytes of an artifact's exported file
    timed_against: Callable[[Artifact], TimeShare] | None = None  # exports its artifact once
    checkpoint_seconds: float = 15.0  # a fit saves itself at the end of an epoch, not more often
    recall: Recall = lambda parts, compute: compute()


@runtime_checkable
class Stage(Protocol):
    """One step of a recipe. The three sets are class attributes, in the words defined above.

    `needs` must hold before; `adds` holds afterwards; an artifact that has any of `destroys`
    is refused, since this stage would silently undo it. They are read-only for the type checker:
    a class attribute, a field or a property will do.

    Six more may be there: `starts_fresh = True` for a stage that never goes on from the one
    before; `weighs_files`, true where what it does depends on bytes of exported files, and
    `times_files` on how fast this machine runs them, which no repetition gives again;
    `check_line(earlier: Sequence[Stage])` and `check_model(model, spec: DataSpec)`, which
    raise UserError for options that cannot work after those stages, or on the architecture (in
    eval mode) that the stage's model begins with; `check_teachers(model, teachers, spec)` the same
    for those of its teachers.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def adds(self) -> frozenset[str]: ...

    @property
    def destroys(self) -> frozenset[str]: ...

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        """`inputs["model"]` is where the stage starts; `inputs["teacher"]` where one is named."""
        ...

    def passes(self, train_images: int) -> tuple[int, int]:
        """(images trained on, images only run forward), for the time estimate of a plan.

        Images that teachers look at are not counted: they are those trained on.
        """
        ...


@dataclass(frozen=True)
class Step:
    """One finished stage of a recipe, as the terminal, the report and the tracker see it."""

    index: int
    name: str
    kind: str  # the class of the stage, in lower case
    key: str
    hit: bool
    seconds: float  # of this run; a hit costs only the reading
    artifact: Artifact
    measurement: Measurement
    coverage: tuple[Coverage, ...]
    history: Mapping[str, list[float]]
    warnings: tuple[str, ...]
    files: Path  # folder with the exported model.onnx and export.json
    is_baseline: bool
    is_last: bool
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
