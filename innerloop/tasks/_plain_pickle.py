"""A loader for pickles of arrays, containers, numbers and text that runs no code from the pickle.

A pickle is a program for a small virtual machine, which may call any Python function and set the
internal state of any object. A whitelist of NumPy functions is not safe either: an object array
over given bytes is an array of memory addresses, and a dtype accepts offsets beyond its size. The
interpreter in this module has only the instructions that such a pickle needs, and it builds the
arrays itself.
"""

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

_MARK = object()


def load_plain(file: BinaryIO) -> Any:
    """The content of a pickle written by Python 2 or 3; its arrays are of the class `Array`.

    Python 2 strings are read as Latin-1 (in protocol 0, only ASCII is possible). The keys of
    dictionaries are text, bytes or integers, and arrays hold numbers.

    Raises:
        ValueError: If the pickle is cut short or asks for anything else. A damaged one may raise
            any other exception.
    """
    machine = _Machine([], {})
    for instruction, argument, _ in pickletools.genops(file):
        if instruction.name == "STOP":
            break
        known = _INSTRUCTIONS.get(instruction.name)
        if known is None:
            raise ValueError(f"it has the instruction {instruction.name}")
        known(machine, argument)
    (content,) = machine.stack
    return content


class Array:
    """An array, which is empty until `fill` is called."""

    def fill(
        self, shape: Any, dtype: np.dtype, column_major: Any, content: Any, axes: Any = None
    ) -> None:
        """Take the content; raises `ValueError` unless it has the length that the shape needs."""
        sizes = type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape)
        if not sizes or type(content) not in (str, bytes, bytearray):
            raise ValueError("an array without a shape or without its bytes")
        if math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"{len(content)} bytes of an array {dtype}{list(shape)}")
        self._shape, self._dtype, self._content = shape, dtype, content
        self._order: Any = "F" if column_major else "C"
        self._axes = axes

    def value(self) -> np.ndarray:
        """The NumPy array."""
        text = isinstance(self._content, str)
        content = self._content.encode("latin-1") if text else self._content
        array = np.ndarray(self._shape, self._dtype, content, order=self._order)
        return array if self._axes is None else array.transpose(self._axes)


@dataclass
class _Type:
    """A dtype of numbers, whose byte order is set later, by `BUILD`."""

    dtype: np.dtype


@dataclass
class _Machine:
    stack: list[Any]
    memo: dict[int, Any]

    def above_mark(self) -> list[Any]:
        """Remove the last mark and the values above it, and return these values."""
        above = []
        while self.stack[-1] is not _MARK:
            above.append(self.stack.pop())
        self.stack.pop()
        return above[::-1]

    def take(self, number: int) -> list[Any]:
        """Remove this number of values from the top, and return them."""
        if len(self.stack) < number:
            raise ValueError("it takes more than there is")
        taken = self.stack[len(self.stack) - number :]
        del self.stack[len(self.stack) - number :]
        return taken


# --- what a pickle of arrays calls ----------------------------------------------------------------


def _type(name: Any, *_: Any) -> _Type:
    if not (type(name) is str and re.fullmatch(r"b1|[iu][1248]|f[248]", name)):
        raise ValueError("an array of anything but numbers")
    return _Type(np.dtype(name))


def _reconstruct(kind: Any, *_: Any) -> Array:
    if kind is not _ndarray:
        raise ValueError("an array of another class")
    return Array()


def _frombuffer(content: Any, kind: _Type, shape: Any, order: Any, axes: Any = None) -> Array:
    array = Array()
    array.fill(shape, kind.dtype, order == "F", content, axes)
    return array


def _scalar(kind: _Type, content: Any) -> Any:
    array = Array()
    array.fill((), kind.dtype, False, content)
    return array.value().item()


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes of another encoding than Latin-1")
    return text.encode("latin-1")


def _ndarray(*_: Any) -> Any:
    raise ValueError("it calls numpy.ndarray")


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _type,
    ("numpy", "ndarray"): _ndarray,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
}


def _named(module: Any, name: Any) -> Callable[..., Any]:
    if type(module) is not str or type(name) is not str:
        raise ValueError("it calls what has no name")
    found = _CALLS.get((module.replace("numpy.core", "numpy._core"), name))
    if found is None:
        raise ValueError(f"it calls {module}.{name}")
    return found


# --- the instructions -----------------------------------------------------------------------------


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


def _empty(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _tuple_of(number: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(tuple(machine.take(number)))


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[int(argument)] = machine.stack[-1]


def _memoize(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.memo[int(argument)])


def _append(machine: _Machine, values: list[Any]) -> None:
    into = machine.stack[-1]
    if type(into) is not list:
        raise ValueError("it appends to what is no list")
    into.extend(values)


def _set(machine: _Machine, pairs: list[Any]) -> None:
    into, keys = machine.stack[-1], pairs[::2]
    if type(into) is not dict or any(type(key) not in (str, bytes, int) for key in keys):
        raise ValueError("a dictionary with keys that are neither text nor numbers")
    into.update(zip(keys, pairs[1::2], strict=True))


def _dict(machine: _Machine, argument: Any) -> None:
    pairs = machine.above_mark()
    machine.stack.append({})
    _set(machine, pairs)


def _global(machine: _Machine, argument: Any) -> None:
    machine.stack.append(_named(*argument.split(" ", 1)))


def _stack_global(machine: _Machine, argument: Any) -> None:
    machine.stack.append(_named(*machine.take(2)))


def _reduce(machine: _Machine, argument: Any) -> None:
    function, arguments = machine.take(2)
    if not any(function is known for known in _CALLS.values()):
        raise ValueError("it calls what is no function")
    machine.stack.append(function(*arguments))


def _build(machine: _Machine, argument: Any) -> None:
    (state,) = machine.take(1)
    _BUILDS[type(machine.stack[-1])](machine.stack[-1], *state)


def _build_array(array: Array, version: Any, shape: Any, kind: _Type, *rest: Any) -> None:
    array.fill(shape, kind.dtype, *rest)


def _build_type(kind: _Type, version: Any, order: Any, *rest: Any) -> None:
    if order not in ("<", ">", "|", "=") or any(each is not None for each in rest[:3]):
        raise ValueError("a data type with parts")
    kind.dtype = kind.dtype.newbyteorder(order)


_BUILDS: dict[type, Callable[..., None]] = {Array: _build_array, _Type: _build_type}

_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _push),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _constant(_MARK),
    "EMPTY_DICT": _empty(dict),
    "EMPTY_LIST": _empty(list),
    "EMPTY_TUPLE": _constant(()),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.above_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.above_mark()),
    "DICT": _dict,
    "APPEND": lambda machine, _: _append(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.above_mark()),
    "SETITEM": lambda machine, _: _set(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set(machine, machine.above_mark()),
    "POP": lambda machine, _: machine.take(1),
    "POP_MARK": lambda machine, _: machine.above_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "MEMOIZE": _memoize,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}
