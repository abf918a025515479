"""Tasks over the devices of a mesh, on one machine or many. No other file names devices."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from innerloop.checks import check_count, describe
from innerloop.errors import StructureError
from innerloop.objective import SumOverTasks

MetaRule = Callable[[jax.ShapeDtypeStruct, int], int | None]
"""`(leaf, devices) -> axis` of a meta leaf that is spread over the devices; None: whole on each."""


def replicated(leaf: jax.ShapeDtypeStruct, devices: int) -> int | None:
    """Every device holds the leaf whole."""
    return None


def largest_axis(leaf: jax.ShapeDtypeStruct, devices: int) -> int | None:
    """The largest axis that the number of devices divides; small leaves stay whole.

    With it the meta-parameters, their average and the optimizer's state are held in parts (ZeRO's
    third stage, FSDP): a step gathers the meta-parameters at its start and scatters the sum of the
    gradients. What the step itself computes with is whole.
    """
    divided = [axis for axis, size in enumerate(leaf.shape) if size and size % devices == 0]
    if leaf.size < _WORTH_SPREADING or not divided:
        return None
    return max(divided, key=lambda axis: leaf.shape[axis])


_WORTH_SPREADING = 1024
"""Elements of a leaf. Below, a message costs more than the memory it saves."""


class Placement(eqx.Module):
    """Where the trainer's arrays are, and how a sum over tasks is run there."""

    @property
    @abc.abstractmethod
    def devices(self) -> int:
        """How many devices share the tasks."""

    @abc.abstractmethod
    def spread(self, sums: SumOverTasks) -> SumOverTasks:
        """The same sum over tasks, each device its own part of them."""

    @abc.abstractmethod
    def each(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """`function(meta, episodes, keys) -> results per task`, each device its own tasks."""

    @abc.abstractmethod
    def by_task(self, tree: PyTree) -> PyTree:
        """Inside a compiled function: the leading axis of every leaf goes over the devices."""

    @abc.abstractmethod
    def whole(self, tree: PyTree) -> PyTree:
        """Inside a compiled function: every leaf whole on every device."""

    @abc.abstractmethod
    def as_state(self, meta: PyTree) -> PyTree:
        """Inside a compiled function: meta-parameters where the training state has them."""

    @abc.abstractmethod
    def gathered(self, meta: PyTree) -> PyTree:
        """Meta-parameters of the training state, whole in every process."""

    @abc.abstractmethod
    def place(self, tree: PyTree) -> PyTree:
        """Arrays of this process, the same in all of them, whole on every device."""

    @abc.abstractmethod
    def place_state(self, state: PyTree, optimizer: optax.GradientTransformation) -> PyTree:
        """The training state where its parts belong."""


class OneDevice(Placement):
    """JAX's default device."""

    @property
    def devices(self) -> int:
        return 1

    def spread(self, sums: SumOverTasks) -> SumOverTasks:
        return sums

    def each(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        return function

    def by_task(self, tree: PyTree) -> PyTree:
        return tree

    def whole(self, tree: PyTree) -> PyTree:
        return tree

    def as_state(self, meta: PyTree) -> PyTree:
        return meta

    def gathered(self, meta: PyTree) -> PyTree:
        return meta

    def place(self, tree: PyTree) -> PyTree:
        return tree

    def place_state(self, state: PyTree, optimizer: optax.GradientTransformation) -> PyTree:
        return state


class Sharding(Placement):
    r"""The task axis over all devices of a mesh, by JAX's own SPMD.

    Each device samples, learns and differentiates its own tasks; losses and gradients are summed
    over the devices, so that a step is the same, up to rounding, on however many. Where they do not
    divide the number of tasks, tasks of weight zero fill the batch up.

    A step sends $2 (d-1)/d$ times the bytes of meta per device (an all-reduce over $d$ devices);
    with `largest_axis` the same bytes as a reduce-scatter of the gradients and an all-gather of the
    meta-parameters.

    - `mesh`: any mesh; all its axes together carry the tasks
    - `meta`: which axis of each meta leaf is spread over the devices: `replicated`, `largest_axis`,
      or a rule of your own

    `meta_value_and_grad(..., spread=Sharding(mesh).spread)` does the same in a loop of your own.
    """

    mesh: Mesh = eqx.field(static=True, converter=lambda mesh: _with_automatic_axes(mesh))
    meta: MetaRule = eqx.field(static=True, default=replicated)

    @property
    def devices(self) -> int:
        return self.mesh.size

    def spread(self, sums: SumOverTasks) -> SumOverTasks:
        names = self.mesh.axis_names

        def run(meta: PyTree, *batch: Any):
            axes = [self._axis(leaf) for leaf in jax.tree.leaves(meta)]
            structure = jax.tree.structure(meta)

            def one_device(meta: PyTree, *batch: Any):
                total, aux, grads = sums(meta, *batch)
                parts = [
                    jax.lax.psum(leaf, names)
                    if axis is None
                    else jax.lax.psum_scatter(leaf, names, scatter_dimension=axis, tiled=True)
                    for leaf, axis in zip(jax.tree.leaves(grads), axes, strict=True)
                ]
                return jax.lax.psum(total, names), aux, jax.tree.unflatten(structure, parts)

            parts = jax.tree.unflatten(structure, [self._part(axis) for axis in axes])
            outs = (PartitionSpec(), self._tasks, parts)
            return self._on_each(one_device, (PartitionSpec(), *[self._tasks] * len(batch)), outs)(
                meta, *batch
            )

        return run

    def each(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        def run(meta: PyTree, *batch: Any):
            tasks = jax.tree.leaves(batch)[0].shape[0]
            padded = jax.tree.map(lambda leaf: leaf[self._rows(tasks)], batch)
            ins = (PartitionSpec(), *[self._tasks] * len(batch))
            results = self._on_each(function, ins, self._tasks)(meta, *padded)
            return self.whole(jax.tree.map(lambda leaf: leaf[:tasks], results))

        return run

    def by_task(self, tree: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, self._named(self._tasks))

    def whole(self, tree: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, self._named(PartitionSpec()))

    def as_state(self, meta: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, self._sharding(leaf)), meta
        )

    def gathered(self, meta: PyTree) -> PyTree:
        if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(meta)):
            return meta
        return jax.jit(lambda meta: meta, out_shardings=self._named(PartitionSpec()))(meta)

    def place(self, tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: _put(leaf, self._named(PartitionSpec())) if eqx.is_array(leaf) else leaf,
            tree,
        )

    def place_state(self, state: PyTree, optimizer: optax.GradientTransformation) -> PyTree:
        shardings = jax.tree.map(self._sharding, state.meta)
        inner = optax.tree.map_params(
            optimizer,
            lambda leaf, sharding: _put(leaf, sharding),
            state.optimizer,
            shardings,
            transform_non_params=self.place,
        )
        placed = self.place(state._replace(meta=None, average=None, optimizer=None))
        meta, average = (
            jax.tree.map(_put, tree, shardings) for tree in (state.meta, state.average)
        )
        return placed._replace(meta=meta, average=average, optimizer=inner)

    def _on_each(self, function: Callable, ins: Any, outs: Any) -> Callable:
        # The checks of what varies over devices do not know the library's own derivative rules.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False
        )

    @property
    def _tasks(self) -> PartitionSpec:
        return PartitionSpec(self.mesh.axis_names)

    def _axis(self, leaf: Any) -> int | None:
        return self.meta(jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), self.devices)

    def _part(self, axis: int | None) -> PartitionSpec:
        if axis is None:
            return PartitionSpec()
        return PartitionSpec(*[None] * axis, self.mesh.axis_names)

    def _sharding(self, leaf: Any) -> NamedSharding:
        return self._named(self._part(self._axis(leaf)))

    def _named(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def _rows(self, tasks: int) -> np.ndarray:
        """Each task once, then the last one as often as fills the devices."""
        return np.minimum(np.arange(round_up(tasks, self.devices)), tasks - 1)


def round_up(count: int, multiple: int) -> int:
    """The least multiple of `multiple` that is no less than `count`."""
    return -(-count // multiple) * multiple


def placement(devices: Any) -> Placement:
    """What `fit(devices=...)` stands for: None, `"all"`, a count, a mesh, or a `Placement`.

    Raises `StructureError` for anything else, and for more devices than there are.
    """
    if devices is None:
        return OneDevice()
    if isinstance(devices, Placement):
        return devices
    if isinstance(devices, Mesh):
        return Sharding(devices)
    found = jax.devices()
    if devices == "all":
        return Sharding(_line_of(found))
    if isinstance(devices, str | bool):
        raise _no_mesh(devices)
    check_count("devices", devices, write="fit(..., devices='all')")
    if devices > len(found):
        raise StructureError(
            "there are not so many devices",
            got=f"devices={devices} of {len(found)} ({found[0].platform})",
            expected=f"at most {len(found)}",
            write=f"devices={len(found)}, or XLA_FLAGS=--xla_force_host_platform_device_count="
            f"{devices} for as many on the host's processor",
        )
    return Sharding(_line_of(found[:devices]))


def _line_of(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.asarray(devices), ("tasks",))


def _with_automatic_axes(mesh: Any) -> Mesh:
    """Axes over which JAX itself propagates shardings; `jax.make_mesh` makes explicit ones."""
    if not isinstance(mesh, Mesh):
        raise _no_mesh(mesh)
    return Mesh(mesh.devices, mesh.axis_names)


def _no_mesh(given: Any) -> StructureError:
    return StructureError(
        "tasks go over the devices of a mesh",
        got=f"devices={describe(given)}",
        expected="None, 'all', a number of devices, a jax.sharding.Mesh, or a Sharding",
        write="fit(..., devices='all')",
    )


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Part of an array that every process has whole, where `sharding` wants it."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
