"""A loss as a traced program whose inputs have names."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax

from innerloop.programs import Flat, FlatStep, Value, flat

PARTS = ("params", "meta", "batch", "key")
"""The arguments of a loss."""
SHAPING = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze")
"""Operations that may change the shape or dtype of their argument, but not its values."""


class LossProgram:
    """A traced loss.

    Attributes:
        closed: The program, whose inputs are the leaves of the loss's arguments.
        leaves: The inputs by name, such as `params['w']` or `batch.inputs`, in order.
    """

    def __init__(self, loss: Callable[..., Any], arguments: tuple, names: tuple[str, ...] = PARTS):
        self.closed = jax.make_jaxpr(loss)(*arguments)
        named = zip(names, arguments, strict=True)
        self.leaves = [
            part + jax.tree_util.keystr(path)
            for part, tree in named
            for path, _ in jax.tree.leaves_with_path(tree)
        ]

    @cached_property
    def flat(self) -> Flat:
        """The program as one list of operations."""
        return flat(self.closed)

    @cached_property
    def made_by(self) -> dict[int, FlatStep]:
        """The operation that makes a value, by the value's number."""
        return {value.number: step for step in self.flat.steps for value in step.results}

    def source(self, value: Value) -> int | None:
        """The position of the input that a value equals up to its shape; None if there is none."""
        while (maker := self.made_by.get(value.number)) is not None:
            if maker.operation.name not in SHAPING:
                return None
            value = maker.args[0]
        return next(iter(value.inputs), None)

    def inputs(self, *names: str) -> frozenset[int]:
        """The positions of the inputs below these names, such as `params` or `batch.targets`."""
        below = lambda leaf, name: leaf == name or leaf.startswith((f"{name}.", f"{name}["))
        return frozenset(
            i for i, leaf in enumerate(self.leaves) if any(below(leaf, name) for name in names)
        )

    @property
    def read(self) -> frozenset[int]:
        """The positions of the inputs that the value of the loss depends on."""
        return self.flat.outputs[0].inputs
