"""Learned optimizers in one file, which any program with innerloop can load."""

import functools
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from innerloop.arguments import checked, path
from innerloop.errors import DataError, StructureError
from innerloop.optimizers.base import LearnedOptimizer
from innerloop.optimizers.table import OPTIMIZERS
from innerloop.storage.arrays import read_arrays, write_arrays
from innerloop.storage.files import plain_file, reading, write_whole, writing
from innerloop.storage.kinds import anything, by_name, count, fields, text

FORMAT = 1
_HEADER = "header"
_HEADERS = fields(
    {"format": count, "optimizer": text, "settings": by_name(anything)},
    {"innerloop": text},
    rest=anything,
)


@checked(path=path())
def save_optimizer(path: Path | str, learned: LearnedOptimizer, meta: PyTree[Array]) -> Path:
    """Write a learned optimizer, its settings and its meta-parameters, to one file.

    The file is written atomically. It holds NumPy arrays and JSON, no code. `meta` may be
    made of dictionaries with text keys, lists and tuples.

    Raises:
        StructureError: If the meta-parameters are not those of this optimizer or have other
            containers, or a setting cannot be saved.
        RunError: If the file cannot be written.
    """
    learned(meta)
    leaves: list[Any] = []
    header = {
        "format": FORMAT,
        "innerloop": version("innerloop"),
        "optimizer": type(learned).__name__,
        "settings": {
            name: _to_json(name, getattr(learned, name)) for name in learned.__dataclass_fields__
        },
        "meta": _outline(meta, leaves),
    }
    arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}
    arrays |= {_HEADER: np.array(json.dumps(header))}
    path = Path(path)
    with writing("the optimizer", path, write="save_optimizer(ANOTHER/FILE, learned, meta)"):
        return write_whole(path, lambda file: write_arrays(file, arrays))


@checked(path=path())
def load_optimizer(
    path: Path | str, kinds: Sequence[type[LearnedOptimizer]] = OPTIMIZERS
) -> tuple[Any, PyTree[Array]]:
    """Read `(learned, meta)` from a file: `learned(meta)` is the optimizer, for any optax loop.

    Args:
        path: The file.
        kinds: The classes that the optimizer may have, by default those of the library.

    Raises:
        DataError: If the file is missing, damaged, or of another version of the format, or the
            optimizer is unknown to this version.
    """
    named = {kind.__name__: kind for kind in kinds}
    with reading(
        "the optimizer cannot be read",
        path,
        expected="a file as save_optimizer writes it",
        kind=DataError,
    ):
        with plain_file(path) as file:
            arrays = read_arrays(file)
        header = _HEADERS(json.loads(str(arrays.pop(_HEADER))))
        unknown = _unknown(header, named)
        if unknown is None:
            settings = {name: _from_json(value) for name, value in header["settings"].items()}
            learned = named[header["optimizer"]](**settings)
            meta = _filled(header["meta"], arrays)
            learned(meta)
            if arrays:
                raise ValueError(f"arrays that no meta-parameter is: {sorted(arrays)}")
            return learned, meta
    saved_by = header.get("innerloop", "unknown")
    raise DataError(
        "this optimizer was saved by another version of innerloop",
        got=f"{path}: {unknown}, saved by innerloop {saved_by}",
        expected=f"format {FORMAT} and an optimizer that innerloop {version('innerloop')} knows, "
        "or that kinds= names",
    )


def _unknown(header: dict[str, Any], kinds: dict[str, type[LearnedOptimizer]]) -> str | None:
    """The part of a header that this version does not know, or None."""
    if header["format"] != FORMAT:
        return f"format {header['format']}"
    if header["optimizer"] not in kinds:
        return f"the optimizer {header['optimizer']}"
    settings = header["settings"].keys() - kinds[header["optimizer"]].__dataclass_fields__.keys()
    return f"the settings {sorted(settings)}" if settings else None


def _outline(tree: PyTree, leaves: list[Any]) -> Any:
    """The containers of a tree as JSON. Its arrays go into `leaves`, their numbers in here."""
    if isinstance(tree, dict) and all(isinstance(name, str) for name in tree):
        return {"dict": {name: _outline(part, leaves) for name, part in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_outline(part, leaves) for part in tree]}
    if isinstance(tree, np.ndarray | jax.Array | float):
        leaves.append(tree)
        return {"array": len(leaves) - 1, "dtype": str(jnp.result_type(tree))}
    raise StructureError(
        "these meta-parameters have a container that a file cannot hold",
        got=type(tree).__name__,
        expected="dictionaries with text keys, lists and tuples of arrays",
    )


def _filled(outline: Any, arrays: dict[str, np.ndarray]) -> PyTree:
    """The tree of an outline, with the arrays taken out of `arrays`."""
    if "array" in outline:  # numpy keeps the bytes of a bfloat16, but not its name
        return jnp.asarray(arrays.pop(str(outline["array"])).view(jnp.dtype(outline["dtype"])))
    ((container, parts),) = outline.items()
    if container == "dict":
        return {name: _filled(part, arrays) for name, part in parts.items()}
    make = {"list": list, "tuple": tuple}[container]
    return make(_filled(part, arrays) for part in parts)


def _to_json(name: str, setting: Any) -> Any:
    if isinstance(setting, bool | int | float | str):
        return setting
    if isinstance(setting, tuple):
        return [_to_json(name, part) for part in setting]
    function, keywords = setting, {}
    if isinstance(setting, functools.partial) and not setting.args:
        function, keywords = setting.func, setting.keywords
    if getattr(optax, getattr(function, "__name__", ""), None) is function:
        keywords = {key: _to_json(name, value) for key, value in keywords.items()}
        return {"optax": function.__name__, "keywords": keywords}
    raise StructureError(
        f"the setting {name} cannot be saved",
        got=repr(setting),
        expected="a number, a tuple of numbers, or a function of optax",
        write=f"{name}=functools.partial(optax.scale_by_adam, b1=0.9)",
    )


def _from_json(setting: Any) -> Any:
    if isinstance(setting, list):
        return tuple(_from_json(part) for part in setting)
    if not isinstance(setting, dict):
        return setting
    function, keywords = getattr(optax, setting["optax"]), setting["keywords"]
    settings = {name: _from_json(value) for name, value in keywords.items()}
    direction = functools.partial(function, **settings) if settings else function
    _require_direction(direction)
    return direction


def _require_direction(direction: Any) -> None:
    """Raise any exception unless this function makes a transformation that can take a step."""

    def step(params):
        made = direction()
        return made.update(params, made.init(params), params)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, _ = jax.eval_shape(step, jax.ShapeDtypeStruct((2,), jnp.float32))
    if updates.shape != (2,):
        raise ValueError("the direction changes the shape of an update")
