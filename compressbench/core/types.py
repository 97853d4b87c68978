"""Types shared by all packages: data, artifacts, stages and their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from compressbench.core.batchnorm import BatchNormRule
from compressbench.core.journal import Journal

SplitName = Literal["train", "validation", "test"]
Edit = dict[str, Any]

# Properties that a stage may establish; the order rules of recipes refer to them.
TRAINED = "trained"
MASKED = "masked"
CHANNEL_PRUNED = "channel-pruned"
WEIGHT_QUANTIZED = "weight-quantized"
ACTIVATION_QUANTIZED = "activation-quantized"
QUANTIZED = frozenset({WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED})  # destroyed when weights change


@dataclass(frozen=True)
class Tokens:
    """The form of text inputs: ids in [0, `vocabulary`), padded at the end with `pad`.

    `tokenizer` is the SHA-256 of the tokenizer.json that produces the ids.
    """

    vocabulary: int
    pad: int
    tokenizer: str


@dataclass(frozen=True)
class DataSpec:
    """Description of a dataset for models and exported files.

    `input_shape` is the shape of one sample: (channels, height, width) for images, (tokens,) for
    texts. `mean` and `std` are per channel, for inputs scaled to [0, 1]; empty for texts, which
    have `tokens`, and for float inputs, which are not normalised. `class_names` are the names of
    the classes, or of the numbers that a model of another task answers. `task` None is
    classification.
    """

    name: str
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metric: str = "accuracy"
    tokens: Tokens | None = None
    task: Any = None  # a `core.task.Task`; see `tasks.choice.task_of`

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def blank(self, count: int) -> Tensor:
        """`count` constant inputs of a model, to trace it: float32 zeros, or an id that is not
        padding.
        """
        if self.tokens is None:
            return torch.zeros(count, *self.input_shape)
        return torch.full((count, *self.input_shape), int(self.tokens.pad == 0))

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` random inputs of a model: standard normal numbers, or uniform ids."""
        shape = (count, *self.input_shape)
        if self.tokens is None:
            return torch.randn(shape, generator=generator)
        return torch.randint(self.tokens.vocabulary, shape, generator=generator)


@dataclass(frozen=True)
class Split:
    """One split in memory.

    `inputs` are uint8 [N, C, H, W], float32 [N, ...], or ids [N, L] of any integer type; `targets`
    [N, ...] are what the task says: int64 [N] for classification.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


class Data(Protocol):
    """A dataset, decoded once and held in memory.

    It may also have `companions() -> dict[str, str]`: text files (name -> content) that ship with
    the model.
    """

    @property
    def spec(self) -> DataSpec: ...

    def manifest(self) -> dict[str, Any]:
        """Plain JSON that identifies the data: file digests, splits, transforms."""
        ...

    def verify(self) -> None:
        """Raise CheckFailedError if the files no longer match the manifest."""
        ...

    def split(self, name: SplitName) -> Split: ...

    def prepare(self, inputs: Tensor) -> Tensor:
        """Convert a batch to model inputs, on the same device: uint8 images to normalised float32,
        float32 to a copy, ids [B, L] to int64.
        """
        ...

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Apply random training transforms; device and type of the batch stay the same."""
        ...


@dataclass(frozen=True)
class Runtime:
    """Hardware settings of a run; every field is part of the content key of a stage."""

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
    """A model, and what is needed to build it again.

    `model` runs in float, with masks and fake quantizers in place. `edits` (plain JSON, in order)
    turn a fresh model of `model_config` into this architecture. `properties` are those that the
    stages established, `early` the tensors of an early epoch if training kept them.
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
        """A new artifact with `model`, additional `edits` and the properties `adds`, without a
        key.
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
    """What a stage did to one layer; `touched` of its `total` weights were changed."""

    layer: str
    kind: str
    total: int
    touched: int
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of a stage.

    `history` maps names to values per epoch. `tables` map names to rows of plain JSON with equal
    columns. `notes` are lines on how the result was obtained.
    """

    artifact: Artifact
    coverage: tuple[Coverage, ...] = ()
    history: Mapping[str, list[float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """Figures of an exported file by name (`size/onnx_bytes`, ...)."""

    figures: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    file_sha256: str = ""  # of the file that was measured: no other is shipped


# (what a result depends on besides the stage's start, a function that computes it and keeps what it
# has finished in a journal) -> the result, from the store if it was computed before; plain JSON
Recall = Callable[[Mapping[str, Any], Callable[[Journal], Any]], Any]
TimeShare = Callable[[Artifact], float]  # latency / that of a reference, in pairs


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its inputs; `folder` is scratch space."""

    data: Data
    runtime: Runtime
    seed: int
    folder: Path
    build: Callable[[Mapping[str, Any]], Any]  # a `_target_` config -> the object
    progress: Callable[[int, int, str], None] = lambda done, total, text: None
    export_bytes: Callable[[Artifact], int] | None = None  # bytes of an artifact's exported file
    timed_against: Callable[[Artifact], TimeShare] | None = None  # exports its artifact once
    checkpoint_seconds: float = 15.0  # minimum time between checkpoints of a fit
    recall: Recall = lambda parts, compute: compute(Journal())
    batchnorm: BatchNormRule = "shift"  # what the stage does with statistics after its changes
    journal: Journal = field(default_factory=Journal)  # of what the stage has finished


@runtime_checkable
class Stage(Protocol):
    """One step of a recipe.

    `needs` are properties that the input must have; `adds` are those that the output has
    afterwards; an input with any of `destroys` is rejected, since the stage would silently undo
    it. The three sets may be class attributes, fields or properties.

    Optional members:
        starts_fresh: True for a stage that never continues from the previous one.
        weighs_files: True if the result depends on the size of exported files.
        times_files: True if the result depends on latency measured on this machine, which is not
            reproducible.
        check_line(earlier): raises UserError for options that cannot work after the stages
            `earlier`.
        check_model(model, spec): raises UserError for options that cannot work on the architecture
            that the stage starts from (in eval mode) and the `DataSpec`.
        check_limits(model, spec): raises LimitError for limits that no result can meet; asked where
            no earlier stage of the chain changes the architecture.
        check_teachers(model, teachers, spec): the same, with the teachers.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def adds(self) -> frozenset[str]: ...

    @property
    def destroys(self) -> frozenset[str]: ...

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        """Run on `inputs["model"]`, and `inputs["teacher"]` if the recipe names a teacher."""
        ...

    def passes(self, train_images: int) -> tuple[int, int]:
        """(images trained on, images only run forward), for the time estimate of a plan.

        Forward passes of teachers are not counted; teachers see the images trained on.
        """
        ...


@dataclass(frozen=True)
class Step:
    """One finished stage of a recipe, for terminal, report and tracking."""

    index: int
    name: str
    kind: str  # the class of the stage, in lower case
    key: str
    hit: bool
    seconds: float  # in this run; for a store hit only the loading
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
