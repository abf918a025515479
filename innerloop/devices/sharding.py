"""Tasks over the devices of a mesh, on one machine or many. Only this file chooses devices."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from innerloop.arguments import at_least, checked, either, instance, one_of, or_none
from innerloop.checks import describe
from innerloop.devices.placement import OneDevice, Placement
from innerloop.errors import StructureError
from innerloop.masks import padding_rows
from innerloop.programs import traced_without_mesh
from innerloop.sums import SumOverTasks
from innerloop.trees import is_key

MetaRule = Callable[[jax.ShapeDtypeStruct, int], int | None]
"""`(leaf, devices) -> axis`: the axis of a meta leaf that is split over the devices, or None."""


def replicated(leaf: jax.ShapeDtypeStruct, devices: int) -> int | None:
    """Every device holds the leaf whole."""
    return None


def largest_axis(leaf: jax.ShapeDtypeStruct, devices: int) -> int | None:
    """The largest axis that the number of devices divides; small leaves stay whole.

    The meta-parameters, their average and the optimizer's state are then held in parts (ZeRO's
    third stage, FSDP): a step gathers the meta-parameters at its start and scatters the sum of the
    gradients. During the step itself, the meta-parameters are whole.
    """
    divided = [axis for axis, size in enumerate(leaf.shape) if size and size % devices == 0]
    if leaf.size < _WORTH_SPREADING or not divided:
        return None
    return max(divided, key=lambda axis: leaf.shape[axis])


_WORTH_SPREADING = 1024
"""Elements of a leaf, below which a message costs more than the memory that it saves."""


_MESH, _ALL = "a jax.sharding.Mesh", "jax.make_mesh((jax.device_count(),), ('tasks',))"


def _with_automatic_axes(mesh: Any) -> Mesh:
    """The mesh with automatic axes, over which JAX propagates shardings, and not explicit ones."""
    return Mesh(mesh.devices, mesh.axis_names) if isinstance(mesh, Mesh) else mesh


class Sharding(Placement):
    """The task axis over all devices of a mesh, by JAX's own SPMD.

    Each device samples, learns and differentiates its own tasks. Losses and gradients are summed
    over the devices, so that a step is the same, up to rounding, on any number of devices. If the
    number of devices does not divide the number of tasks, tasks of weight zero fill up the batch.

    A step sends $2 (d-1)/d$ times the bytes of meta per device (an all-reduce over $d$ devices);
    with `largest_axis`, it sends the same bytes as a reduce-scatter of the gradients and an
    all-gather of the meta-parameters.

    `meta_value_and_grad(..., spread=Sharding(mesh).spread)` does the same in a loop of your own.

    Args:
        mesh: Any mesh; all its axes together carry the tasks.
        meta: The rule for the axis of each meta leaf that is split over the devices: `replicated`,
            `largest_axis`, or a rule of your own.
    """

    mesh: Mesh = instance(
        Mesh, what=_MESH, such_as=_ALL, static=True, converter=_with_automatic_axes
    )
    meta: MetaRule = eqx.field(static=True, default=replicated)

    @property
    def devices(self) -> int:
        return self.mesh.size

    def spread(self, sums: SumOverTasks) -> SumOverTasks:
        names = self.mesh.axis_names

        def run(meta: PyTree, *batch: Any):
            tasks, parts = len(batch[-1]), jax.tree.map(self._part, meta)
            if tasks % self.devices:
                raise StructureError(
                    "the devices cannot share the tasks evenly",
                    got=f"{tasks} tasks on {self.devices} devices",
                    expected="a multiple of the number of devices",
                )

            def summed(leaf: Array, part: PartitionSpec) -> Array:
                if not len(part):
                    return jax.lax.psum(leaf, names)
                axis = len(part) - 1
                return jax.lax.psum_scatter(leaf, names, scatter_dimension=axis, tiled=True)

            def over_devices(result: tuple) -> tuple:
                total, aux, grads = result
                return jax.lax.psum(total, names), aux, jax.tree.map(summed, grads, parts)

            outs = (PartitionSpec(), self._tasks, parts)
            return self._on_each(sums, over_devices, outs, meta, *batch)

        return run

    def each(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        def run(meta: PyTree, *batch: Any):
            tasks = jax.tree.leaves(batch)[0].shape[0]
            rows = padding_rows(tasks, round_up(tasks, self.devices))
            padded = jax.tree.map(lambda leaf: leaf[rows], batch)
            results = self._on_each(function, lambda result: result, self._tasks, meta, *padded)
            return self.whole(jax.tree.map(lambda leaf: leaf[:tasks], results))

        return run

    def by_task(self, tree: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, self._named(self._tasks))

    def whole(self, tree: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, self._named(PartitionSpec()))

    def as_state(self, meta: PyTree) -> PyTree:
        constrained = jax.lax.with_sharding_constraint
        return jax.tree.map(lambda leaf: constrained(leaf, self._sharding(leaf)), meta)

    def as_optimizer_state(self, state: PyTree, meta: PyTree) -> PyTree:
        put = jax.lax.with_sharding_constraint
        return self._of_leaves(state, meta, put, self.whole)

    def gathered(self, meta: PyTree) -> PyTree:
        if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(meta)):
            return meta
        return _gather(self._named(PartitionSpec()))(meta)

    def place(self, tree: PyTree) -> PyTree:
        whole = self._named(PartitionSpec())
        put = lambda leaf: _put(leaf, whole) if eqx.is_array(leaf) else leaf
        return jax.tree.map(put, tree)

    def place_by_task(self, tree: PyTree, per_task: PyTree) -> PyTree:
        flags = jax.tree.broadcast(per_task, tree)
        specs = {True: self._named(self._tasks), False: self._named(PartitionSpec())}
        return jax.tree.map(lambda leaf, flag: _put(leaf, specs[flag]), tree, flags)

    def place_state(self, state: PyTree) -> PyTree:
        inner = self._of_leaves(state.optimizer, state.meta, _put, self.place)
        placed = self.place(state._replace(meta=None, average=None, optimizer=None))
        parts = {"meta": state.meta, "average": state.average}
        parts = jax.tree.map(lambda leaf: _put(leaf, self._sharding(leaf)), parts)
        return placed._replace(**parts, optimizer=inner)

    def _of_leaves(self, state: PyTree, meta: PyTree, put: Callable, rest: Callable) -> PyTree:
        """Places each array of optimizer state with the leaf of meta whose shape it has and with
        whose path its own path ends. The rest is whole everywhere.

        `optax.tree.map_params` calls the optimizer's `init` with placeholders in place of arrays,
        on which line searches, `muon`, `sm3` and optimizers of parts of meta fail.
        """
        leaves = jax.tree.leaves_with_path(meta)

        def one(path: tuple, kept: Any) -> Any:
            for end, leaf in leaves:
                if path[len(path) - len(end) :] == end and jnp.shape(kept) == leaf.shape:
                    return put(kept, self._sharding(leaf))
            return rest(kept)

        return jax.tree.map_with_path(one, state)

    def _on_each(
        self, function: Callable, after: Callable, outs: Any, meta: PyTree, *batch: Any
    ) -> PyTree:
        """`after(function(meta, *batch))` with each device's part of the batch."""
        # Inside `shard_map`, the type of a value says how it is sharded. Lineax and Equinox compare
        # types, and these would differ from types without a sharding. So the function is traced
        # outside.
        part = lambda leaf: leaf[: leaf.shape[0] // self.devices]
        parts = jax.eval_shape(lambda batch: jax.tree.map(part, batch), batch)
        program = traced_without_mesh(function, meta, *parts)

        def one_device(constants: list, meta: PyTree, *batch: Any) -> PyTree:
            return after(program(constants, meta, *batch))

        ins = (PartitionSpec(), PartitionSpec(), *[self._tasks] * len(batch))
        # JAX's check of values that vary over devices does not know the library's derivative rules.
        run = jax.shard_map(
            one_device, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False
        )
        return run(program.constants, meta, *batch)

    @property
    def _tasks(self) -> PartitionSpec:
        return PartitionSpec(self.mesh.axis_names)

    def _part(self, leaf: Any) -> PartitionSpec:
        """The axis of a leaf of meta that is split over the devices, if there is one."""
        shape, devices = jnp.shape(leaf), self.devices
        axis = self.meta(jax.ShapeDtypeStruct(shape, leaf.dtype), devices)
        if axis is None:
            return PartitionSpec()
        if axis in range(len(shape)) and shape[axis] % devices == 0:
            return PartitionSpec(*[None] * axis, self.mesh.axis_names)
        raise StructureError(
            "a leaf of meta cannot be spread along the axis that the rule gives",
            got=f"axis {axis!r} of a leaf of shape {shape}, on {devices} devices",
            expected="an axis from 0 on that the number of devices divides, or None",
            write="Sharding(mesh, largest_axis)",
        )

    def _sharding(self, leaf: Any) -> NamedSharding:
        return self._named(self._part(leaf))

    def _named(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple


@checked(
    "fit",
    devices=or_none(
        either(at_least(1), one_of("all"), instance(Mesh, Placement, what=_MESH, such_as=_ALL))
    ),
)
def placement(devices: Any) -> Placement:
    """The placement for `fit(devices=...)`: None, `"all"`, a count, a mesh, or a `Placement`.

    Args:
        devices: The argument of `fit`.

    Returns:
        The placement.

    Raises:
        StructureError: If `devices` is anything else, if there are fewer devices, or if one of
            several processes has no device among them.
    """
    place = devices
    if devices is None:
        place = OneDevice()
    elif isinstance(devices, Mesh):
        place = Sharding(devices)
    elif not isinstance(devices, Placement):
        found = jax.devices()
        count = len(found) if devices == "all" else devices
        if count > len(found):
            raise StructureError(
                "there are fewer devices than asked for",
                got=f"devices={count} of {len(found)} ({found[0].platform})",
                expected=f"at most {len(found)}; on a CPU, "
                "XLA_FLAGS=--xla_force_host_platform_device_count= sets their number",
                write=f"devices={len(found)}",
            )
        place = Sharding(Mesh(np.asarray(found[:count]), ("tasks",)))
    mesh = place.mesh.devices.flat if isinstance(place, Sharding) else jax.local_devices()[:1]
    without = set(range(jax.process_count())) - {device.process_index for device in mesh}
    if without:
        raise StructureError(
            "every process needs a device of its own among those that share the tasks",
            got=f"devices={describe(devices)}, none of them of process {min(without)}",
            expected=f"devices of all {jax.process_count()} processes",
        )
    return place


@functools.cache  # a new function at each validation would be compiled, and kept, each time
def _gather(sharding: NamedSharding) -> Callable[[PyTree], PyTree]:
    return jax.jit(lambda meta: meta, out_shardings=sharding)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Places this process's part of an array that every process has whole."""
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if is_key(leaf):
        data = _put(jax.random.key_data(leaf), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
