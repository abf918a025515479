"""What the numbers of a run depend on: the fields of an estimator, as JSON values by name."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from innerloop.trees import key_numbers

NO_SETTING = {"setting": False}
"""Metadata of a field that changes how numbers are computed, but only by rounding."""

_LARGE = 2**26
"""Bytes of an array from which on only its shape and type are compared: a checksum takes time."""


def settings_of(value: Any, name: str = "") -> dict[str, Any]:
    """Every field of a module, and of the modules in its fields, under its dotted name.

    A module is described by its class, a function by its qualified name, an array by its type,
    shape and checksum. Fields whose metadata is `NO_SETTING` are left out.
    """
    found: dict[str, Any] = {}
    if name:
        found[name] = type(value).__name__
    for field, each in _parts(value):
        dotted = f"{name}.{field}" if name else field
        if _is_compound(each):
            found |= settings_of(each, dotted)
        else:
            found[dotted] = _plain(each)
    return found


def _parts(value: Any) -> list[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        fields = (f for f in dataclasses.fields(value) if f.metadata.get("setting", True))
        return [(field.name, getattr(value, field.name)) for field in fields]
    if hasattr(value, "_fields"):  # a named tuple
        value = value._asdict()
    if isinstance(value, Mapping):
        return [(str(key), each) for key, each in value.items()]
    return [(str(i), each) for i, each in enumerate(value)]


def _is_compound(value: Any) -> bool:
    is_compound = dataclasses.is_dataclass(value) or isinstance(value, Mapping | tuple | list)
    return is_compound and not isinstance(value, type)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _array(value)
    return getattr(value, "__qualname__", type(value).__name__)


def _array(value: Any) -> str:
    value = key_numbers(value)
    said = f"{value.dtype}{list(value.shape)}"
    if value.nbytes >= _LARGE:
        return said
    return f"{said} {zlib.crc32(np.ascontiguousarray(value).tobytes()):08x}"
