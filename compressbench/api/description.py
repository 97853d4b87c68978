"""What a live object is and does, as plain JSON: its structure, its values and its code.

Code is described as it is in memory, not as it stands in a file: functions by their bytecode, with
the globals and closures that they reach, so that an edited helper of a notebook counts as well. Of
installed libraries the name and the version count.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import json
import sys
import sysconfig
import types
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (str, int, float, bool, type(None))
_BY_NAME = (
    weakref.ReferenceType, types.BuiltinFunctionType, types.WrapperDescriptorType,
    types.MethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
)  # fmt: skip
_BY_TEXT = (torch.dtype, torch.device, torch.layout, torch.memory_format, complex, bytes,
            range, slice, types.EllipsisType)  # fmt: skip
_NOT_OF_A_CLASS = {"__dict__", "__weakref__", "__module__", "__doc__", "_abc_impl",
                   "__firstlineno__", "__static_attributes__", "__annotations__",
                   "__annotate_func__", "__annotations_cache__"}  # fmt: skip

_MODES = {"training", "_is_torch_compile", "_compile_kwargs", "_compiled_call_impl"}


def module_sha256(module: nn.Module) -> str:
    """SHA-256 of the code and structure of a module; of its tensors, names and shapes only.

    What cannot be described (a generator, a lock) makes every digest another one.
    """
    try:
        described = json.dumps(Description(module).of(module))
    except RecursionError:
        described = uuid.uuid4().hex
    return hashlib.sha256(described.encode()).hexdigest()


def state_sha256(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, whether they are saved or not."""
    sha = hashlib.sha256()
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    for name, tensor in sorted([*parameters, *buffers], key=lambda named: named[0]):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(_bytes(tensor))
    return sha.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


class Description:
    """Describes what a module is made of, each object once: where it comes again, its number."""

    def __init__(self, module: nn.Module) -> None:
        self.classes: list[type] = []  # of the program's own, in the order in which they were met
        self._registered = {id(tensor) for tensor in module.parameters()}
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # a number holds as long as its object lives

    def of(self, value: Any) -> Any:
        if isinstance(value, _PLAIN) and type(value) in _PLAIN:
            return value
        if isinstance(value, _BY_TEXT):
            return [type(value).__name__, repr(value)]
        if isinstance(value, tuple) and type(value) in (tuple, torch.Size):
            return ["tuple", *map(self.of, value)]
        if isinstance(value, (frozenset, set)):
            return ["set", *sorted(map(self.of, value), key=json.dumps)]
        if isinstance(value, types.CodeType):
            return self._code(value)
        number = self._numbers.setdefault(id(value), len(self._numbers))
        if number < len(self._kept):
            return ["again", number]
        self._kept.append(value)
        return self._composed(value)

    def _composed(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return ["module", self.of(type(value)), self._attributes(value)]
        if isinstance(value, Tensor):
            kind = [str(value.dtype), list(value.shape), value.requires_grad]
            inside = id(value) in self._registered  # its values are in the state
            return [*kind, "" if inside else hashlib.sha256(_bytes(value)).hexdigest()]
        if isinstance(value, np.ndarray) and value.dtype != object:
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return [str(value.dtype), list(value.shape), content]
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, (types.FunctionType, types.MethodType, types.ModuleType)):
            return self._function_or_module(value)
        if isinstance(value, _BY_NAME):
            return getattr(value, "__qualname__", type(value).__name__)
        if type(value) in (list, dict, types.MappingProxyType):
            return [type(value).__name__, *map(self.of, _items(value))]
        return self._object(value)

    def _attributes(self, module: nn.Module) -> list[Any]:
        found: list[Any] = []
        for name, value in vars(module).items():
            if name == "_buffers":  # their values are in the state
                shapes = {n: None if b is None else [str(b.dtype), list(b.shape)]
                          for n, b in value.items()}  # fmt: skip
                found.append([name, shapes])
            elif "_hooks" in name:  # numbered by a counter of the process
                found.append([name, [self.of(hook) for hook in value.values()]])
            elif name not in _MODES:  # how it runs; not what it is
                found.append([name, self.of(value)])
        return found

    def _class(self, kind: type) -> Any:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if _is_installed(kind.__module__):
            return [name, _version(kind.__module__)]
        self.classes.append(kind)
        inside = [[n, self.of(v)] for n, v in vars(kind).items() if n not in _NOT_OF_A_CLASS]
        return [name, [self.of(base) for base in kind.__bases__], inside]

    def _function_or_module(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return ["method", self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, types.ModuleType):
            return [value.__name__, _version(value.__name__)]
        name = f"{value.__module__}.{value.__qualname__}"
        if _is_installed(value.__module__ or ""):
            return [name, _version(value.__module__ or "")]
        cells = [_cell(cell) for cell in value.__closure__ or ()]
        return [name, self._code(value.__code__), self.of(value.__defaults__),
                self.of(value.__kwdefaults__), [self.of(c) for c in cells],
                self._globals(value.__code__, value.__globals__)]  # fmt: skip

    def _globals(self, code: types.CodeType, space: Mapping[str, Any]) -> list[Any]:
        """What a function finds outside of itself: globals, and modules that it imports."""
        names = sorted(_names(code))
        found: list[Any] = []
        for kind, name in sorted(_outside(code)):
            where = sys.modules if kind == "IMPORT_NAME" else space
            if name in where:
                found.append([name, self._reached(where[name], names)])
        return found

    def _reached(self, value: Any, names: Sequence[str]) -> Any:
        """A value; of a module of the program, what code that uses `names` can take from it."""
        if not isinstance(value, types.ModuleType) or _is_installed(value.__name__):
            return self.of(value)
        inside = vars(value)
        below = {n: [other for other in names if other != n] for n in names if n in inside}
        return [value.__name__, *([n, self._reached(inside[n], below[n])] for n in below)]

    def _code(self, code: types.CodeType) -> Any:
        return [
            code.co_name, code.co_code.hex(), code.co_exceptiontable.hex(), code.co_flags,
            [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount],
            [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars],
            [self.of(constant) for constant in code.co_consts],
        ]  # fmt: skip

    def _object(self, value: Any) -> Any:
        if isinstance(value, (property, staticmethod, classmethod, functools.cached_property)):
            names = ("fget", "fset", "fdel", "__func__", "func")
            return [type(value).__name__, [self.of(getattr(value, n, None)) for n in names]]
        if isinstance(value, functools._lru_cache_wrapper):
            return [type(value).__name__, self.of(value.__wrapped__)]
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 - whatever an object says to being copied
            return ["not described", type(value).__name__, uuid.uuid4().hex]
        parts = reduced if isinstance(reduced, tuple) else (reduced,)
        return [self.of(type(value)), *(self.of(_listed(part)) for part in parts)]


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else value.items()


def _listed(part: Any) -> Any:
    """The items that an object is filled with, which come as an iterator."""
    return list(part) if hasattr(part, "__next__") else part


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names(code: types.CodeType) -> set[str]:
    """Names of globals and attributes in a function and in those inside it."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _outside(code: types.CodeType) -> set[tuple[str, str]]:
    """(instruction, name) of the globals and imports of a function and of those inside it."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    kinds = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "IMPORT_NAME")
    own = {(i.opname, i.argval) for i in dis.get_instructions(code) if i.opname in kinds}
    return own.union(*map(_outside, inner))


def _version(module: str) -> str:
    top = sys.modules.get(module.partition(".")[0])
    return str(getattr(top, "__version__", ""))


@functools.cache
def _is_installed(module: str) -> bool:
    """Whether a module is a library's; not so the program itself and what lies beside it."""
    top = module.partition(".")[0]
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return True
    found = sys.modules.get(top)
    file = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), None)
    if found is None or file is None:
        return False
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    place = Path(file).resolve()
    libraries = ("site-packages", "dist-packages")
    return any(place.is_relative_to(Path(f).resolve()) for f in folders) or any(
        part in libraries for part in place.parts
    )
