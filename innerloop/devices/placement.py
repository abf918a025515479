"""Where the trainer's arrays are: one device, or what `sharding.py` says of many."""

import abc
from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import PyTree

from innerloop.arguments import CheckedModule
from innerloop.objective import SumOverTasks


class Placement(CheckedModule):
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
    def as_optimizer_state(
        self, optimizer: optax.GradientTransformation, state: PyTree, meta: PyTree
    ) -> PyTree:
        """Inside a compiled function: what the optimizer keeps of each leaf, where the leaf is."""

    @abc.abstractmethod
    def gathered(self, meta: PyTree) -> PyTree:
        """Meta-parameters of the training state, whole in every process."""

    @abc.abstractmethod
    def place(self, tree: PyTree) -> PyTree:
        """Arrays of this process, the same in all of them, whole on every device."""

    @abc.abstractmethod
    def place_by_task(self, tree: PyTree, per_task: PyTree) -> PyTree:
        """An estimator's state where its leaves belong.

        Args:
            tree: Arrays that every process has whole.
            per_task: A prefix tree of booleans: True where the leading axis of the leaves goes over
                the devices, False where every device holds the leaves whole.
        """

    @abc.abstractmethod
    def place_state(self, state: PyTree, optimizer: optax.GradientTransformation) -> PyTree:
        """The training state where its parts belong, without the estimator's state."""


_as_it_is: Any = lambda self, given, *_: given


class OneDevice(Placement):
    """JAX's default device: everything stays as it is and where it is."""

    @property
    def devices(self) -> int:
        return 1

    spread = each = by_task = whole = as_state = gathered = _as_it_is
    place = place_by_task = place_state = _as_it_is

    def as_optimizer_state(
        self, optimizer: optax.GradientTransformation, state: PyTree, meta: PyTree
    ) -> PyTree:
        return state
