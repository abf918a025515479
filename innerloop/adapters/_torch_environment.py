"""The environment in which torchax runs a module for one forward pass."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
from jaxtyping import Array, PRNGKeyArray

from innerloop.adapters._torch_operations import ImageOperations
from innerloop.adapters._torch_views import Memories, makes_views, name_of, refuse_out_of_date
from innerloop.checks import optional_package
from innerloop.errors import StructureError

ROWS = 4099
"""What PyTorch takes for the number of rows of a program that is exported for any number.

A prime number that is no size of a layer, so that the arguments that PyTorch computes from it are
found and replaced. The module itself never sees it.
"""


def environment(key: PRNGKeyArray | None, mask: Array | None, rows: Any) -> Any:
    """A torchax environment for one forward pass; see `Environment`."""
    return _classes()(key, mask, rows)


@functools.cache
def _classes() -> Any:
    """`Environment` on the class of torchax, with tensors of its own."""
    torch = optional_package("torch", "from_torch", "torch")
    torchax = optional_package("torchax", "from_torch", "torch")
    mappings = optional_package("torchax.ops.mappings", "from_torch", "torch")

    class Tensor(torchax.tensor.Tensor):
        """A tensor whose methods that are no operations for torchax are noted too."""

        @staticmethod
        def __new__(cls, elem, env, requires_grad=False):
            shape = [for_torch(size, env.rows) for size in elem.shape]
            options = {"dtype": mappings.j2t_dtype(elem.dtype), "device": "meta"}
            return torch.Tensor._make_wrapper_subclass(cls, shape, **options)

        type_as = torch.Tensor.type_as

        def flatten(self, start_dim=0, end_dim=-1):
            return self._env.noted(super().flatten(start_dim, end_dim), of=self)

        def detach(self):
            return self._env.noted(super().detach(), of=self)

    base, ours = torchax.tensor.Environment, (torchax.tensor.Tensor, torchax.tensor.View)
    parts = {"base": base, "ours": ours, "tensor": Tensor}
    return type("Environment", (Environment, base), parts)


class Environment(ImageOperations):
    """A torchax environment for one forward pass.

    - Random numbers come from `key`.
    - Batch normalisation leaves out padded rows, and updates running averages in place.
    - Max pooling, and on CPU convolutions, differentiate twice at full speed.
    - Tensors that are neither parameters nor buffers of the module are constants.
    - Results of operations under `torch.no_grad()` are constants for every derivative.
    - A program for any number of rows is right, or an error: torchax gives PyTorch one row.
    - A change in place that torchax would lose, in a view or in its base, is an error.

    Args:
        key: The key of this pass; None if the network may not draw at random.
        mask: `(rows,)`, False where a row is padding, or None.
        rows: The number of rows, of which JAX may know the name alone.
    """

    tensor: Any
    t2j_copy: Any

    def __init__(self, key: PRNGKeyArray | None, mask: Array | None, rows: Any):
        self.key, self.mask, self.rows = key, mask, rows
        self.base.__init__(self)
        self.memories = Memories(self.ours[1])
        self.operation = ""

    def noted(self, view: Any, of: Any) -> Any:
        """A view of a tensor, which is recorded as one."""
        view = self.own(view)
        self.memories.note_view(of, [view], divided=False)
        return view

    def constant_of(self, tensor: Any) -> Any:
        """A tensor with the same values, which are constants for every derivative."""
        constant = self.ours[0].detach(tensor)
        is_view = id(tensor) in self.memories.known
        return self.noted(constant, tensor) if is_view else self.own(constant)

    def own(self, result: Any) -> Any:
        """The result of an operation with tensors of this environment in it."""
        is_other = lambda leaf: type(leaf) is self.ours[0]
        own = lambda leaf: self.tensor(leaf.jax(), self) if is_other(leaf) else leaf
        return jax.tree.map(own, result)

    def j2t_iso(self, jaxarray: Any) -> Any:
        """Tensors with the values of arrays."""
        return self.own(self.base.j2t_iso(self, jaxarray))

    def get_and_rotate_prng_key(self, generator: Any = None) -> Any:
        """The key of the next draw."""
        if generator is not None:
            return self.base.get_and_rotate_prng_key(self, generator)
        if self.key is None:
            raise StructureError(
                "the network draws at random, and this pass has no key",
                got="key=None",
                expected="a key, such as jax.random.key(0)",
            )
        self.key, own = jax.random.split(self.key)
        return own

    def dispatch(self, func: Any, types: Any, args: tuple, kwargs: dict | None) -> Any:
        """The result of an operation, whose name is kept for errors of its parts."""
        within, self.operation = self.operation, self.operation or name_of(func)
        try:
            return self._run(func, types, args, kwargs or {})
        finally:
            self.operation = within

    def _run(self, func: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        given = jax.tree.leaves((args, kwargs))
        tensors = self._tensors(given)
        if not isinstance(self.rows, int):
            args, kwargs = jax.tree.map(lambda x: for_jax(x, self.rows), (args, kwargs))
        if not tensors:
            return self.own(self.base.dispatch(self, func, types, args, kwargs))
        if func in _sizes():
            return _sizes()[func](*args, **kwargs)
        out_of_date = self.memories.out_of_date(tensors)
        args, kwargs = jax.tree.map(self._as_constant, (args, kwargs))
        result = self.on_images(func, types, args, kwargs)
        if result is NotImplemented:
            # An operation that torchax does not know is left here, for the parts of it.
            result = self.base.dispatch(self, func, types, args, kwargs)
        result = self.own(result)
        refuse_out_of_date(out_of_date, self.operation)
        self.memories.note_changes(tensors, self.operation)
        return self._noted_result(func, tensors[0], {id(leaf) for leaf in given}, result)

    def _noted_result(self, func: Any, first: Any, old: set[int], result: Any) -> Any:
        """The result of an operation: constants under `no_grad`, and views are recorded."""
        torch = optional_package("torch", "from_torch", "torch")
        is_new = lambda leaf: isinstance(leaf, self.ours[0]) and id(leaf) not in old
        if not torch.is_grad_enabled():
            result = jax.tree.map(lambda x: self.constant_of(x) if is_new(x) else x, result)
        if makes_views(func):
            new = [leaf for leaf in jax.tree.leaves(result) if is_new(leaf)]
            same = [leaf for leaf in new if leaf.dtype == first.dtype]
            self.memories.note_view(first, same, divided=isinstance(result, list | tuple))
        return result

    def _as_constant(self, leaf: Any) -> Any:
        """A tensor of PyTorch as one of this environment; everything else as it is.

        A tensor without axes does not promote the dtype of others; torchax takes it as a number.
        """
        torch = optional_package("torch", "from_torch", "torch")
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, self.ours) and leaf.ndim > 0:
            return self.j2t_iso(self.t2j_copy(leaf))
        return leaf

    def _tensors(self, leaves: Iterable[Any]) -> list[Any]:
        return [leaf for leaf in leaves if isinstance(leaf, self.ours)]

    def finish(self, tree: Any) -> None:
        """Ends the pass, whose results these are."""
        tensors = self._tensors(jax.tree.leaves(tree))
        refuse_out_of_date(self.memories.out_of_date(tensors), "the end of the forward pass")
        self.memories.known.clear()


@functools.cache
def _sizes() -> dict[Any, Any]:
    """The methods that ask for sizes, with functions that know those of JAX."""
    torch = optional_package("torch", "from_torch", "torch")
    size = lambda x, dim=None: torch.Size(x.jax().shape) if dim is None else x.jax().shape[dim]
    numel = lambda x: math.prod(x.jax().shape)
    of_number = (torch.numel, torch.Tensor.numel, torch.Tensor.nelement)
    return {torch.Tensor.size: size, **dict.fromkeys(of_number, numel)}


def for_torch(size: Any, rows: Any) -> int:
    """A size as PyTorch is told it, a multiple of `ROWS` if only JAX knows it."""
    if isinstance(size, int):
        return size
    times = size // rows
    if isinstance(rows, int) or times * rows != size:
        raise StructureError(
            "PyTorch needs to know this number of rows",
            got=f"an array with {size} rows",
            expected="any_rows=False, or an operation that has a multiple of the rows",
        )
    return ROWS * for_torch(times, rows)


def for_jax(number: Any, rows: Any) -> Any:
    """An argument of an operation, with the sizes of which PyTorch was told `ROWS`."""
    if isinstance(number, int | float) and number > 0 and number % ROWS == 0:
        return for_jax(int(number) // ROWS, rows) * rows
    return number
