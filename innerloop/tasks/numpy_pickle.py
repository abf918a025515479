"""Reads pickles of arrays without running their programs."""

import importlib
import pickle
from pathlib import Path
from typing import Any

from innerloop.errors import DataError

# What NumPy writes into a pickle of its arrays, in Python 2 and 3. Nothing here does anything but
# build an array, a number or bytes.
_HARMLESS = {
    "numpy": ("ndarray", "dtype"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "_codecs": ("encode",),
}


class _ArraysOnly(pickle.Unpickler):
    """A pickle may call any function with any arguments; this reader allows only these."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # NumPy's name before version 2
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return getattr(importlib.import_module(module), name)


def load_arrays(path: Path) -> Any:
    """The lists, dicts, numbers, text and arrays in a pickle of Python 2 or 3.

    Raises:
        DataError: If the file holds anything else or cannot be read.
    """
    try:
        with path.open("rb") as content:
            return _ArraysOnly(content, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as a pickle of arrays",
            got=f"{type(error).__name__}: {error}",
            expected="a complete file with nothing but dicts, lists, numbers, text and arrays, as "
            "a pickle that holds more may run any program",
            write=f"rm {path} and download it again, from where you trust",
        ) from error
