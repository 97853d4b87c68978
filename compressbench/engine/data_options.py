"""The options that the data give to a model's class, under the names that its signature has."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from compressbench.config.instantiate import options_of_target
from compressbench.core.errors import UserError
from compressbench.core.types import DataSpec
from compressbench.tasks.choice import task_of

# The first name of each line is ours; the others are those of timm, transformers, torchvision and
# of common code. One that often means something else, such as `channels`, is not among them.
SHAPE = ("input_shape", "in_shape", "image_shape", "input_dims")
CHANNELS = ("in_channels", "in_chans", "in_ch", "in_c", "input_channels", "num_channels",
            "n_channels", "num_input_channels", "channels_in")  # fmt: skip
SIZE = ("image_size", "img_size", "input_resolution", "resolution", "input_size")
FEATURES = ("in_features", "input_dim", "in_dim", "input_features", "n_inputs", "num_inputs")
CLASSES = ("num_classes", "n_classes", "nb_classes", "num_class", "n_class", "nclass", "classes",
           "class_count", "num_labels", "n_labels", "output_dim", "out_dim", "out_features",
           "num_outputs", "n_outputs", "output_size")  # fmt: skip
VOCABULARY = ("vocabulary", "vocab_size", "vocabulary_size", "n_vocab", "num_embeddings",
              "num_tokens", "n_tokens", "ntoken")  # fmt: skip
PAD = ("pad", "pad_id", "pad_idx", "padding_idx", "pad_token_id")
LENGTH = ("max_length", "max_len", "max_tokens", "seq_len", "seq_length", "sequence_length",
          "context_length", "block_size", "max_position_embeddings")  # fmt: skip


def with_data_options(config: Mapping[str, Any], spec: DataSpec, where: str) -> dict[str, Any]:
    """`config` with what the data determine, each option under the name that the class gives it.

    A class that takes any option gets `input_shape` and `num_classes` unless it names others for
    them. What `config` sets itself stays. Raises UserError for an option that the class requires
    and the data do not tell, and for another number of classes than the data have.
    """
    if "_target_" not in config:
        raise UserError(f"{where}._target_ is required: the class or function to call")
    named, takes_any = options_of_target(config, where)
    given: dict[str, Any] = {}
    for names, value in _of_the_data(spec, named):
        found = next((name for name in names if name in named), None)
        if found is None and takes_any and names[0] in _OURS:
            found = names[0]
        if found is not None:
            given[found] = value
    if takes_any and any(name in named for name in (*CHANNELS, *SIZE, *FEATURES)):
        given.pop(SHAPE[0])
    options = {**given, **config}
    _check_classes(given, options, spec, where)
    _check_complete(options, named, where)
    return options


_UNITS = {"classes": "classes", "binary": "labels"}  # of an answer
_OURS = (SHAPE[0], CLASSES[0], VOCABULARY[0], PAD[0])


def takes_texts(config: Mapping[str, Any], where: str) -> bool | None:
    """Whether a class takes a vocabulary; None if that cannot be told."""
    if "_target_" not in config:
        return None
    named, takes_any = options_of_target(config, where)
    return None if takes_any else any(name in named for name in VOCABULARY)


def _of_the_data(spec: DataSpec, named: Collection[str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names of an option, its value) for all that the data determine."""
    shape = list(spec.input_shape)
    yield SHAPE, shape
    outputs = task_of(spec).outputs(spec)
    if outputs:  # else whatever the model answers
        yield CLASSES, outputs
    if spec.tokens:
        yield VOCABULARY, spec.tokens.vocabulary
        yield PAD, spec.tokens.pad
        yield LENGTH, shape[0]
    elif any(name in named for name in (*SHAPE, *CHANNELS)):
        yield CHANNELS, shape[0]
        sizes = shape[1:] or shape
        yield SIZE, sizes[0] if len(set(sizes)) == 1 else sizes
    else:
        yield (*FEATURES, "input_size"), math.prod(shape)
        sizes = shape[1:] or shape
        yield SIZE[:-1], sizes[0] if len(set(sizes)) == 1 else sizes


def _check_classes(
    given: Mapping[str, Any], options: Mapping[str, Any], spec: DataSpec, where: str
) -> None:
    for name in CLASSES:
        if name in given and options[name] != given[name]:
            raise UserError(
                f"{where}.{name}={options[name]}, but dataset {spec.name} has "
                f"{given[name]} {_UNITS.get(task_of(spec).distribution, 'outputs')}: teacher, "
                "student and dataset must agree"
            )


def _check_complete(options: Mapping[str, Any], named: Mapping[str, bool], where: str) -> None:
    missing = [name for name, required in named.items() if required and name not in options]
    if missing:
        raise UserError(
            f"{where}.{missing[0]} is required by {options['_target_']}, and the data do not tell "
            f"it: set it in the YAML; the data tell {SHAPE[0]} (or {CHANNELS[0]}, {SIZE[0]}, "
            f"{FEATURES[0]}) and {CLASSES[0]}"
        )
