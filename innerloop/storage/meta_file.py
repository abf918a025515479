"""A file format for a tree of arrays: the leaves as Equinox writes them, names and a checksum."""

import hashlib
import io
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from innerloop.arguments import checked, path
from innerloop.checks import describe_briefly, first_of, require_tree, text_type
from innerloop.errors import RunError, StructureError
from innerloop.storage.arrays import read_array
from innerloop.storage.files import READ_AT_MOST, read_bytes, reading, write_whole, writing
from innerloop.storage.kinds import by_name, text
from innerloop.trees import abstract, is_key, leaf_names, leaf_shapes, tree_bytes

_SEAL = b"sha256 %s\n"
_SEAL_BYTES = len(_SEAL) - 2 + 64


@checked(path=path())
def save_meta(path: str | os.PathLike[str], meta: PyTree) -> Path:
    """Writes meta-parameters, or any other tree of arrays, to one file.

    The file is written atomically. It ends with the names of the arrays and a checksum, and
    contains no code. `equinox.tree_deserialise_leaves` can read it too.

    Args:
        path: The path of the file. Its folder must exist.
        meta: The tree, such as `outcome.meta`. To save the model state too, pass the pair
            `(outcome.meta, outcome.learner.problem.state)`.

    Returns:
        The path of the file.

    Raises:
        StructureError: If a leaf is not an array of numbers.
        RunError: If the file cannot be written.
    """
    path, content = Path(path), sealed(meta)
    with writing("the meta-parameters", path, write="save_meta(ANOTHER/FILE, meta)"):
        return write_whole(path, lambda file: file.write(content))


@checked(path=path())
def load_meta(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Reads a tree that `save_meta` wrote, or the best meta-parameters of a run (`best.eqx`).

    Args:
        path: The path of the file.
        like: A tree of the same structure, of arrays or `jax.ShapeDtypeStruct`s, such as
            `jax.eval_shape(recipe.init_meta, key)`.

    Returns:
        A tree with the structure of `like` and the arrays of the file.

    Raises:
        StructureError: If a leaf of `like` is not an array.
        RunError: If the file is missing or damaged, or if the names, shapes or dtypes of its arrays
            differ from those of `like`. The error then names the leaves that differ.
    """
    expected = "a file as save_meta or a run writes it"
    context = partial(reading, "the meta-parameters cannot be read", path, expected=expected)
    return read_sealed(Path(path), like, context)


def sealed(tree: PyTree) -> bytes:
    """Returns the content of a file for a tree. Raises `StructureError` if a leaf is no array."""
    _require_numbers("meta", tree)
    arrays = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.result_type(leaf)), tree)
    leaves = zip(leaf_names(arrays), jax.tree.leaves(arrays), strict=True)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, arrays)
    # NumPy writes the bytes of a bfloat16 array, but not the name of its dtype.
    np.save(file, np.array(json.dumps({name: str(leaf.dtype) for name, leaf in leaves})))
    return file.getvalue() + _seal(file.getvalue())


def read_sealed(
    path: Path, like: PyTree, context: Callable[[], AbstractContextManager[None]]
) -> PyTree:
    """Reads the tree in a file whose content is that of `sealed`.

    Args:
        path: The path of the file.
        like: A tree of the same structure, of arrays or `jax.ShapeDtypeStruct`s.
        context: Returns a context manager that converts errors in reading to errors of the library.

    Raises:
        StructureError: If a leaf of `like` is not an array.
        RunError: If the names, shapes or dtypes of the arrays differ from those of `like`.
    """
    _require_numbers("like", like)
    with context():
        arrays = _unsealed(read_bytes(path, at_most=max(READ_AT_MOST, 2 * tree_bytes(like))))
    theirs = {name: f"{each.dtype}{list(each.shape)}" for name, each in arrays.items()}
    mine = leaf_shapes(abstract(like))
    differ = [name for name in {**mine, **theirs} if theirs.get(name) != mine.get(name)]
    if differ:
        said = lambda of: first_of([f"{name}: {of.get(name, 'no array')}" for name in differ])
        raise RunError(
            "the arrays in the file are not the expected ones",
            got=f"{path} with {said(theirs)}",
            expected=said(mine),
        )
    leaves = [jnp.asarray(arrays[name]) for name in mine]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _unsealed(content: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays in `sealed` content, by name."""
    content, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    if seal != _seal(content):
        raise ValueError("the checksum does not match the content")
    file, arrays = io.BytesIO(content), []
    while file.tell() < len(content):
        arrays.append(read_array(file))
    dtypes = by_name(text)(json.loads(str(arrays.pop())))
    pairs = zip(dtypes.items(), arrays, strict=True)
    return {name: array.view(jnp.dtype(dtype)) for (name, dtype), array in pairs}


def _require_numbers(name: str, tree: PyTree) -> None:
    """Raises `StructureError` unless the leaves of a tree are arrays of numbers, or shapes."""
    require_tree(name, tree)
    known = lambda leaf: eqx.is_array_like(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    for place, leaf in jax.tree.leaves_with_path(tree):
        if not known(leaf) or is_key(leaf) or text_type(leaf) is not None:
            raise StructureError(
                f"{name}{jax.tree_util.keystr(place)} is not an array of numbers",
                got=describe_briefly(leaf),
                expected="a tree of arrays, such as outcome.meta or "
                "jax.eval_shape(recipe.init_meta, key)",
            )


def _seal(content: bytes) -> bytes:
    return _SEAL % hashlib.sha256(content).hexdigest().encode()
