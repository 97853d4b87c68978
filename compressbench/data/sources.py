"""Sources of encoded images: parquet files, and folders with one subfolder per class."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from compressbench.core.errors import UserError
from compressbench.core.input_files import input_file, read_input
from compressbench.core.nearest import nearest
from compressbench.core.validation import shown
from compressbench.data.labels import Label

SUFFIXES = (".png", ".jpg", ".jpeg")
ROWS_AT_ONCE = 1024
MOST_ROWS = 10**8  # a small file can hold many equal ones
MOST_IMAGE_BYTES = 2 * 10**8  # of an encoded image


class Source(Protocol):
    """Encoded images with labels, in a fixed order."""

    @property
    def name(self) -> str:
        """The name for messages."""
        ...

    @property
    def files(self) -> Mapping[str, Path]:
        """Name within the dataset -> file."""
        ...

    @property
    def image_column(self) -> str | None: ...

    @property
    def class_names(self) -> list[str] | None:
        """The names of integer labels, where the files have them."""
        ...

    def labels(self) -> list[Label]: ...

    def images(self) -> Iterator[tuple[str, bytes]]:
        """Yield (place for messages, PNG or JPEG bytes) of every image."""
        ...


@dataclass(frozen=True)
class Parquet:
    """Rows of parquet files; an image is raw bytes or a struct with a field `bytes`."""

    paths: tuple[Path, ...]
    image_column: str = "img"
    label_column: str = "label"

    def __post_init__(self) -> None:
        for path in self.paths:
            input_file(path)
        if len({path.name for path in self.paths}) < len(self.paths):
            raise UserError(f"parquet files must have different names, got {_listed(self.paths)}")

    @property
    def name(self) -> str:
        return _listed(self.paths)

    @cached_property
    def files(self) -> Mapping[str, Path]:
        return {path.name: path for path in self.paths}

    @cached_property
    def class_names(self) -> list[str] | None:
        """What the files call their integer labels, where Hugging Face datasets noted it."""
        for path in self.paths:
            features = _hugging_face_features(path)
            names = features.get(self.label_column, {}).get("names")
            if isinstance(names, list):
                return [str(name) for name in names]
        return None

    def labels(self) -> list[Label]:
        labels: list[Label] = []
        for path in self.paths:
            for column in _read(path, "label_column", self.label_column):
                labels.extend(_labels(column, path, self.label_column))
        return labels

    def images(self) -> Iterator[tuple[str, bytes]]:
        for path in self.paths:
            row = 0
            for column in _read(path, "image_column", self.image_column):
                for data in _encoded(column, path, self.image_column):
                    if data is None:
                        raise UserError(f"{path} row {row}: no image bytes")
                    yield f"{path} row {row}", data
                    row += 1


def _listed(paths: tuple[Path, ...]) -> str:
    return ", ".join(str(path) for path in paths)


def _read(path: Path, option: str, column: str) -> Iterator[Any]:
    """Yield one column as arrow arrays of at most ROWS_AT_ONCE rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_column(path, option, column, file.schema_arrow.names)
            if file.metadata.num_rows > MOST_ROWS:
                raise UserError(
                    f"{path}: {file.metadata.num_rows} rows, at most {MOST_ROWS} are read"
                )
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column]):
                yield batch.column(0)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a valid parquet file: {reason}") from error


def _hugging_face_features(path: Path) -> dict[str, Any]:
    """Column -> its description; empty where the file has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        noted = (pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(noted).get("info", {}).get("features", {})
    except (pa.ArrowException, OSError, ValueError, AttributeError):
        return {}  # reading the column will tell what is wrong with the file
    described = features if isinstance(features, dict) else {}
    return {name: each for name, each in described.items() if isinstance(each, dict)}


def _check_column(path: Path, option: str, column: str, names: list[str]) -> None:
    if column in names:
        return
    near = nearest(column, names)
    raise UserError(f"{path}: no column {shown(column)}{near} (dataset.{option})")


def _labels(column: Any, path: Path, name: str) -> list[Label]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_integer(column.type) or pa.types.is_string(column.type)):
        raise UserError(f"{path}: labels must be integers or text, {name!r} has {column.type}")
    if column.null_count:
        raise UserError(f"{path}: column {name!r} has rows without a label")
    labels: list[Label] = column.to_pylist()
    return labels


def _encoded(column: Any, path: Path, name: str) -> Iterator[bytes | None]:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = column.flatten()[kind.get_field_index("bytes")]
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise UserError(
            f"{path}: images must be PNG or JPEG bytes, or a struct with `bytes`; "
            f"column {name!r} has {kind}"
        )
    for value in column:
        yield value.as_py()


@dataclass(frozen=True)
class Folder:
    """`root/<class>/*.png|jpg|jpeg`; the labels are the names of the subfolders."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    @property
    def image_column(self) -> None:
        return None

    @property
    def class_names(self) -> None:
        return None

    @cached_property
    def files(self) -> Mapping[str, Path]:
        paths: dict[str, Path] = {}
        for folder in subfolders(self.root):
            images = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
            if not images:
                raise UserError(f"{folder}: no {', '.join(SUFFIXES)} files in this class")
            paths |= {f"{folder.name}/{path.name}": path for path in images}
        if not paths:
            raise UserError(f"{self.root}: no subfolders; one folder per class is needed")
        return paths

    def labels(self) -> list[Label]:
        return [path.parent.name for path in self.files.values()]

    def images(self) -> Iterator[tuple[str, bytes]]:
        for path in self.files.values():
            try:
                yield str(path), read_input(path, MOST_IMAGE_BYTES)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def subfolders(root: Path) -> list[Path]:
    """The visible folders in `root`, sorted; raises UserError if `root` is not a folder."""
    if not root.is_dir():
        raise UserError(f"dataset: {root} is not a folder")
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
