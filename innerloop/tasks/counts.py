"""The number of classes and examples of a task: a number, or a range to draw from."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from innerloop.arguments import Requirement, at_least, kind, requirement_of


@dataclass(frozen=True)
class PerClass:
    """A number from `least` to `most`, both included, drawn for each class separately.

    For the shots of a task it gives imbalanced support sets, in which some classes have more
    examples than others.

    Args:
        least: The smallest number.
        most: The largest number.
    """

    least: int
    most: int


Count = int | tuple[int, int]
"""A number, or `(least, most)`, both included, from which one is drawn for each task."""


def ends(count: Count | PerClass) -> tuple[int, int]:
    """The fewest and the most."""
    if isinstance(count, PerClass):
        return count.least, count.most
    return count if isinstance(count, tuple) else (count, count)


@kind
def range_of(least: int) -> Any:
    """A range of whole numbers from `least` on, as a kind of argument; see `arguments`."""
    number = requirement_of(at_least(least))
    assert number is not None

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple | PerClass):
            return False
        both = ends(value)
        return len(both) == 2 and all(map(number.accepts, both)) and both[0] <= both[1]

    what = f"a range (least, most) from {least} on"
    expected = f"(least, most) with {least} <= least <= most"
    return Requirement(accepts, what, expected, f"({least}, {least + 4})")


def draw_count(key: PRNGKeyArray, count: Count | PerClass, classes: int) -> Int[Array, " classes"]:
    """The number for each class, uniform over the range: one for all, or one for each."""
    least, most = ends(count)
    shape = (classes,) if isinstance(count, PerClass) else (1,)
    drawn = jax.random.randint(key, shape, least, most + 1, jnp.int32)
    return jnp.broadcast_to(drawn, (classes,))
