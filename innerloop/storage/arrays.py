"""Arrays in files that are not trusted: reading takes no more memory than the file has bytes."""

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import numpy as np

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_array(file: io.BufferedIOBase) -> np.ndarray:
    """The next array of a file in NumPy's format, as a read-only array.

    NumPy's own reader allocates the memory that the header asks for before it reads the data.

    Raises:
        ValueError: If it is not an array of numbers or text, or there are fewer bytes than its
            shape needs. A damaged header may raise any other exception.
    """
    shape, column_major, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    # V is what NumPy writes for bfloat16, whose name it does not know.
    if dtype.kind not in "biufcUSV" or dtype.names or dtype.subdtype or dtype.itemsize == 0:
        raise ValueError(f"an array of {dtype}")
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape {shape}")
    size = math.prod(shape) * dtype.itemsize
    content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{len(content)} bytes of an array that needs {size}")
    return np.ndarray(shape, dtype, content, order="F" if column_major else "C")


def read_arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of an archive that `write_arrays` wrote, by name.

    Raises:
        ValueError: If the archive is encrypted or compressed, or declares more content than the
            file holds. A damaged archive may raise any other exception.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
            raise ValueError("an archive that is compressed or encrypted")
        size = file.seek(0, 2)
        if sum(member.file_size for member in members) > size:
            raise ValueError("an archive that says that it holds more than the file does")
        arrays = {}
        for member in members:
            with archive.open(member) as opened:
                content = cast(io.BufferedIOBase, opened)
                arrays[member.filename.removesuffix(".npy")] = read_array(content)
                if content.read(1):
                    raise ValueError(f"more in {member.filename} than its array")
        if len(arrays) < len(members):
            raise ValueError("two arrays of one name")
    return arrays


def write_arrays(file: BinaryIO, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as an archive, which `numpy.load` reads too; see `read_arrays`."""
    save = cast(Any, np.savez)
    save(file, **arrays)
