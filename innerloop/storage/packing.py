"""Packs the leaves of a state into stored arrays: the small leaves together, as bytes.

A storage layer's costs are per array: TensorStore keeps some 600 bytes of memory for each that was
ever written, for as long as the process lives.
"""

import zlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

PACKED_BELOW = 2**20
"""Bytes below which a leaf is packed."""

_PACKED = "packed"

Leaves = dict[str, Array]
"""Arrays by name. Leaves that are not packed are stored under their number."""


def pack(leaves: Leaves) -> tuple[dict[str, Any], list[str]]:
    """The arrays to store, and the names of the packed leaves, which a reader needs.

    A leaf that is spread over devices is never packed: each process writes its own part.
    """
    packed = [n for n, x in leaves.items() if x.is_fully_replicated and x.nbytes < PACKED_BELOW]
    arrays: dict[str, Any] = _numbered(leaves, packed)
    if packed:
        values = jax.device_get([leaves[name] for name in packed])
        arrays[_PACKED] = np.concatenate([np.ravel(value).view(np.uint8) for value in values])
    return arrays, packed


def stored_arrays(like: Leaves, packed: list[str]) -> dict[str, Any]:
    """The shapes, dtypes and places of the arrays that `pack` stored; `like` gives the places."""
    arrays: dict[str, Any] = {
        i: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for i, leaf in _numbered(like, packed).items()
    }
    if packed:
        arrays[_PACKED] = np.zeros(sum(like[name].nbytes for name in packed), np.uint8)
    return arrays


def unpack(arrays: dict[str, Any], like: Leaves, packed: list[str]) -> Leaves:
    """The inverse of `pack`: the leaves, in the places of `like`."""
    names = [name for name in like if name not in packed]
    leaves = {name: arrays[i] for name, i in zip(names, _numbered(like, packed), strict=True)}
    start = 0
    for name in packed:
        end = start + like[name].nbytes
        leaves[name] = _placed(arrays[_PACKED][start:end], like[name])
        start = end
    return leaves


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """CRC-32 of each array that this process holds whole; the storage layer has no checksums."""
    whole = {
        name: array
        for name, array in arrays.items()
        if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated
    }
    return {
        name: zlib.crc32(np.ravel(value).view(np.uint8).data)
        for name, value in jax.device_get(whole).items()
    }


def _numbered(leaves: Leaves, packed: list[str]) -> Leaves:
    return {str(i): leaf for i, (name, leaf) in enumerate(leaves.items()) if name not in packed}


def _placed(data: np.ndarray, like: Array) -> Array:
    value = data.copy().view(like.dtype).reshape(like.shape)  # a copy is aligned
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])
