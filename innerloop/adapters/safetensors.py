"""Pretrained weights from files in the safetensors format."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from innerloop.adapters._precision import require_range
from innerloop.adapters._where import closest, holds, literal, named_leaves
from innerloop.arguments import Requirement, checked, kind, optional, requirement_of
from innerloop.arguments import function as function_of
from innerloop.arguments import path as path_of
from innerloop.checks import (
    adapter_call,
    describe_briefly,
    explained,
    first_of,
    is_floating,
    optional_package,
    require_tree,
    text_type,
)
from innerloop.errors import DataError, StructureError
from innerloop.models import Model
from innerloop.storage.files import plain_file, reading
from innerloop.trees import abstract

Names = Callable[[str], str] | Mapping[str, str] | None


@kind
def naming(**field: Any) -> Any:
    """A dictionary of names, or a function of a path."""
    function = requirement_of(function_of("path"))
    assert function is not None
    return Requirement(
        lambda value: isinstance(value, Mapping) or function.accepts(value),
        "a function of a path, or a dictionary",
        "path -> name in the file",
        "lambda path: f'model.{path}'",
        cure_for=lambda value: f"lambda path: {value!r} + path" if isinstance(value, str) else None,
    )


@kind
def patterns(**field: Any) -> Any:
    """A list of texts."""
    return Requirement(
        lambda value: (
            isinstance(value, Collection)
            and not isinstance(value, str)
            and all(isinstance(each, str) for each in value)
        ),
        "a list of patterns",
        "[text, ...]",
        "['lm_head']",
        cure_for=lambda value: f"[{value!r}]" if isinstance(value, str) else None,
    )


FLOAT8 = {
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F8_E8M0": jnp.float8_e8m0fnu,
    "F8_E4M3FNUZ": jnp.float8_e4m3fnuz,
    "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
}
"""The types of one byte by their names in files."""

PACKED = {"F4", "F6_E2M3", "F6_E3M2"}
"""The types of less than a byte."""

LISTED = 5
"""How many faults of a kind an error lists."""


@checked(
    path=path_of(such_as="'weights.safetensors'"), names=optional(naming()), ignored=patterns()
)
def load_safetensors(
    path: Path | str,
    like: PyTree = None,
    *,
    names: Names = None,
    ignored: Sequence[str] = (),
) -> PyTree[np.ndarray]:
    """Read arrays from a file in the safetensors format, such as pretrained weights.

    ```python
    params = il.adapters.load_safetensors(
        "weights.safetensors", like=params, names=lambda path: f"model.{path}"
    )
    ```

    With `like`, every array of the tree must be in the file with the same shape, and every tensor
    of the file must belong to an array of the tree or be `ignored`. Without `like`, the result
    holds all tensors by name, from which you can build a tree of transposed or joined tensors.

    The function needs the package safetensors (`pip install 'innerloop[safetensors]'`).

    Args:
        path: The file.
        like: A tree of arrays, or of `jax.ShapeDtypeStruct`s, such as that of
            `jax.eval_shape(model.init, key)`; None to read all tensors into a dictionary.
        names: A function or a dictionary from the path of an array in the tree, such as
            `"body.0.weights"`, to its name in the file. Without `names`, and for a path that is not
            in the dictionary, the path is the name.
        ignored: Patterns, with the wildcards of `matching`, of names in the file that may belong to
            no array of the tree.

    Returns:
        The tree with NumPy arrays from the file. Floating-point numbers are converted to the dtype
        of `like`; other dtypes must be equal. Without `like`, a dictionary `{name: array}`.

    Raises:
        DataError: If the file is missing or damaged, or if names, shapes or dtypes do not fit. For
            a name that does not fit, the error gives the closest names. Numbers beyond the range of
            the dtype, and tensors of numbers of less than a byte, do not fit.
        RunError: If the package is not installed.
        StructureError: If an argument is wrong, `like` holds anything but arrays and shapes, or two
            arrays get the same name.
    """
    if like is None:
        return _tensors(path, sorted(_shapes(path)))
    _require_shapes(like)
    leaves = named_leaves(abstract(like))
    names_in_file = _names_in_file(list(leaves), names)
    shapes = _shapes(path)
    _require_names(path, names_in_file, shapes, ignored, names is None)
    different = [
        f"{name!r} is {shapes[name]}, and {place!r} of the tree {leaves[place].shape}"
        for place, name in names_in_file.items()
        if shapes[name] != leaves[place].shape
    ]
    if different:
        raise DataError(
            "tensors of the file have other shapes than the arrays of the tree",
            got=f"{path}: {first_of(different, LISTED)}",
            expected="equal shapes; load_safetensors without like reads all tensors by name, to be "
            "transposed or joined",
        )
    tensors = _tensors(path, list(names_in_file.values()))
    loaded = [_converted(path, tensors[names_in_file[place]], place, leaves) for place in leaves]
    return jax.tree.unflatten(jax.tree.structure(like), loaded)


def _require_shapes(like: PyTree) -> None:
    """Raise `StructureError` unless a tree has arrays, or their shapes, in all places."""
    require_tree("like", like)
    has_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct) or eqx.is_array_like(leaf)
    if all(map(has_shape, jax.tree.leaves(like))) and text_type(like) is None:
        return
    call = "model" if isinstance(like, Model) else adapter_call(like)
    raise StructureError(
        "like is not a tree of arrays",
        got=describe_briefly(like),
        expected="a tree of arrays, such as the parameters that model.init returns, or of "
        "jax.ShapeDtypeStructs",
        write=f"like={call}.init(jax.random.key(0))" if call else None,
    )


def _reading(path: Path | str) -> AbstractContextManager[None]:
    expected = "a file in the safetensors format, with numbers of a type that NumPy or JAX has"
    return reading("the tensors cannot be read", path, expected=expected, kind=DataError)


@contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    # The package maps the file into memory, so it opens it once more.
    with plain_file(path), _package().safe_open(path, framework="np") as file:
        yield file


def _package() -> Any:
    return optional_package("safetensors", "load_safetensors", extra="safetensors")


def _shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a file."""
    _package()
    with _reading(path), _opened(path) as file:
        names = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def _tensors(path: Path | str, names: Sequence[str]) -> dict[str, np.ndarray]:
    with _reading(path), _opened(path) as file:
        types = {name: file.get_slice(name).get_dtype() for name in names}
    packed = [f"{types[name]} for {name!r}" for name in names if types[name] in PACKED]
    if packed:
        raise DataError(
            "tensors of the file have numbers of less than a byte, which NumPy does not have",
            got=f"{path}: {first_of(packed, LISTED)}",
            expected="numbers of a byte or more; with like, only the tensors of the tree are read",
        )
    with _reading(path), _opened(path) as file:
        # NumPy alone, which the package uses, has no float8.
        return {
            name: _float8(path, name, FLOAT8[types[name]])
            if types[name] in FLOAT8
            else file.get_tensor(name)
            for name in names
        }


def _float8(path: Path | str, name: str, dtype: Any) -> np.ndarray:
    """A tensor of a file whose header the package has read without an error."""
    with plain_file(path) as file:
        size = int.from_bytes(file.read(8), "little")
        tensor = json.loads(file.read(size))[name]
        begin, end = tensor["data_offsets"]
        file.seek(8 + size + begin)
        return np.frombuffer(bytearray(file.read(end - begin)), dtype).reshape(tensor["shape"])


def _names_in_file(places: Sequence[str], names: Names) -> dict[str, str]:
    """The name in the file for each path of the tree."""
    if isinstance(names, Mapping):
        unknown = [place for place in names if place not in places]
        if unknown:
            raise StructureError(
                "names has paths that are not in the tree",
                got=first_of([_with_closest(place, places) for place in unknown], LISTED),
                expected="paths of the tree as keys, names in the file as values",
            )
        found = {place: names.get(place, place) for place in places}
    else:
        name_of = explained("names", names, "path") if names else lambda path: path
        found = {place: name_of(place) for place in places}
    for place, name in found.items():
        other = next((each for each, same in found.items() if same == name and each != place), None)
        if not isinstance(name, str) or other is not None:
            raise StructureError(
                "names does not give each array a name of its own",
                got=f"{name!r} for {place!r}" + (f" and {other!r}" if other else ""),
                expected="a different text for each path of the tree",
            )
    return found


def _require_names(
    path: Path | str,
    wanted: Mapping[str, str],
    shapes: Mapping[str, Any],
    ignored: Sequence[str],
    by_path: bool,
) -> None:
    """Raise `DataError` unless the file has the tensors of the tree and no others."""
    missing = [name for name in wanted.values() if name not in shapes]
    known = set(wanted.values())
    extra = [
        name
        for name in sorted(shapes)
        if name not in known and not any(holds(pattern, name) for pattern in ignored)
    ]
    if missing:
        prefix = _prefix(missing, shapes) if by_path else ""
        raise DataError(
            "the file has no tensor for some arrays of the tree",
            got=f"{path}: no {first_of([_with_closest(name, shapes) for name in missing], LISTED)}",
            expected=f"tensors with these names, or names=, which gives the name of each array; "
            f"{len(extra)} tensors of the file belong to no array",
            write=f"names=lambda path: f'{prefix}{{path}}'" if prefix else None,
        )
    unused = [each for each in ignored if not any(holds(each, name) for name in shapes)]
    if unused:
        raise DataError(
            "a pattern of tensors to ignore matches no tensor of the file",
            got=f"{path}: {first_of([_with_closest(each, shapes) for each in unused], LISTED)}",
            expected="patterns of names in the file",
            write=f"ignored={[each for each in ignored if each not in unused]}",
        )
    if extra:
        few = len(extra) <= LISTED
        raise DataError(
            "the file has tensors that belong to no array of the tree",
            got=f"{path}: {first_of([_with_closest(name, wanted) for name in extra], LISTED)}",
            expected="an array for each tensor, or ignored=, a list of patterns of names",
            write=f"ignored={[literal(name) for name in extra]}" if few else None,
        )


def _prefix(missing: Sequence[str], found: Collection[str]) -> str:
    """The common prefix that the missing names have in the file; empty if there is none."""
    for name in found:
        prefix = name.removesuffix(missing[0])
        if prefix != name and all(prefix + each in found for each in missing):
            return prefix
    return ""


def _converted(
    path: Path | str, tensor: np.ndarray, place: str, leaves: Mapping[str, Any]
) -> np.ndarray:
    dtype = leaves[place].dtype
    if tensor.dtype != dtype and not (is_floating(tensor) and is_floating(leaves[place])):
        raise DataError(
            "a tensor of the file has another dtype than the array of the tree",
            got=f"{path}: {tensor.dtype} for {place!r}",
            expected=f"{dtype}; floating-point numbers may be of any width",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        converted = tensor.astype(dtype)
    if is_floating(tensor):
        what = "a tensor of the file"
        require_range(tensor, converted, what, f"{place!r} in {path}", DataError)
    return converted


def _with_closest(name: str, names: Collection[str]) -> str:
    near = ", ".join(map(repr, closest(name, names)))
    return f"{name!r} (closest: {near})" if near else repr(name)
