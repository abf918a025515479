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


def settings_of(value: Any, name: str = "") -> dict[str, Any]:
    """Every field of a module, and of the modules in its fields, under its dotted name.

    A module is described by its class, a function by its qualified name, an array by its type,
    shape and checksum. Fields whose metadata is `NO_SETTING` are left out.
    """
    parts = _parts(value)
    if parts is None:
        return {name: _plain(value)}
    found: dict[str, Any] = {name: type(value).__name__} if name else {}
    for part, each in parts.items():
        found |= settings_of(each, f"{name}.{part}" if name else part)
    return found


def _parts(value: Any) -> dict[str, Any] | None:
    """What a module, a mapping or a tuple is made of; None for anything else."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        fields = (f for f in dataclasses.fields(value) if f.metadata.get("setting", True))
        return {field.name: getattr(value, field.name) for field in fields}
    if hasattr(value, "_fields"):  # a named tuple
        return value._asdict()
    if isinstance(value, tuple | list):
        value = dict(enumerate(value))
    return {str(key): each for key, each in value.items()} if isinstance(value, Mapping) else None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        return getattr(value, "__qualname__", type(value).__name__)
    numbers = key_numbers(value)
    said = f"{numbers.dtype}{list(numbers.shape)}"
    return f"{said} {zlib.crc32(np.ascontiguousarray(numbers).tobytes()):08x}"
