"""The placement of the trainer's arrays: on one device, or on several by `sharding.py`."""

import abc
from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from innerloop.arguments import CheckedModule
from innerloop.sums import SumOverTasks


class Placement(CheckedModule):
    """Where the trainer's arrays are, and how a sum over tasks is computed there."""

    @property
    @abc.abstractmethod
    def devices(self) -> int:
        """How many devices share the tasks."""

    @abc.abstractmethod
    def spread(self, sums: SumOverTasks) -> SumOverTasks:
        """The same sum over tasks, with a part of the tasks on each device."""

    @abc.abstractmethod
    def each(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """`function(meta, episodes, keys) -> results`, with the tasks split over the devices."""

    @abc.abstractmethod
    def by_task(self, tree: PyTree) -> PyTree:
        """Inside a compiled function: splits the leading axis of every leaf over the devices."""

    @abc.abstractmethod
    def whole(self, tree: PyTree) -> PyTree:
        """Inside a compiled function: puts every leaf whole on every device."""

    @abc.abstractmethod
    def as_state(self, meta: PyTree) -> PyTree:
        """Inside a compiled function: places meta-parameters as in the training state."""

    @abc.abstractmethod
    def as_optimizer_state(self, state: PyTree, meta: PyTree) -> PyTree:
        """Inside a compiled function: places the optimizer's state of each leaf with that leaf."""

    @abc.abstractmethod
    def gathered(self, meta: PyTree) -> PyTree:
        """The meta-parameters of the training state, whole in every process."""

    @abc.abstractmethod
    def place(self, tree: PyTree) -> PyTree:
        """Puts arrays that are the same in all processes whole on every device."""

    @abc.abstractmethod
    def place_by_task(self, tree: PyTree, per_task: PyTree) -> PyTree:
        """Places an estimator's state.

        Args:
            tree: Arrays that every process has whole.
            per_task: A prefix tree of booleans: True if the leading axis of the leaves is split
                over the devices, False if every device holds the leaves whole.

        Returns:
            The placed state.
        """

    @abc.abstractmethod
    def place_state(self, state: PyTree) -> PyTree:
        """Places the training state, without the estimator's state."""


_as_it_is: Any = lambda self, given, *_: given


class OneDevice(Placement):
    """JAX's default device: arrays stay where they are."""

    @property
    def devices(self) -> int:
        return 1

    spread = each = by_task = whole = as_state = as_optimizer_state = gathered = _as_it_is
    place = place_by_task = place_state = _as_it_is
