"""Packs the leaves of a state into stored arrays: the small leaves together, as bytes.

The cost of storage is per array: TensorStore keeps some 600 bytes of memory for each array that was
ever written, as long as the process lives.
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
    leaves = {name: arrays[str(i)] for i, name in enumerate(like) if name not in packed}
    ends = np.cumsum([like[name].nbytes for name in packed])
    parts = np.split(arrays[_PACKED], ends[:-1]) if packed else []
    return leaves | {name: _placed(x, like[name]) for name, x in zip(packed, parts, strict=True)}


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """CRC-32 of each array that this process holds whole; the storage layer has no checksums."""
    is_whole = lambda x: (
        isinstance(x, np.ndarray) or (x.is_fully_addressable or x.is_fully_replicated)
    )
    whole = jax.device_get({name: array for name, array in arrays.items() if is_whole(array)})
    return {name: zlib.crc32(np.ravel(x).view(np.uint8).data) for name, x in whole.items()}


def _numbered(leaves: Leaves, packed: list[str]) -> Leaves:
    return {str(i): leaf for i, (name, leaf) in enumerate(leaves.items()) if name not in packed}


def _placed(data: np.ndarray, like: Array) -> Array:
    value = data.copy().view(like.dtype).reshape(like.shape)  # A copy is aligned.
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])
