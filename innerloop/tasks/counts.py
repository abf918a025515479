"""How many classes and examples a task has: a number, or a range that it is drawn from."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from innerloop.checks import check_count
from innerloop.errors import StructureError


@dataclass(frozen=True)
class PerClass:
    """A number from `least` to `most`, both included, drawn for each class by itself.

    As the shots of a task it makes imbalanced support sets, in which some classes have more
    examples than others.
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


def check_range(name: str, count: Count | PerClass, least: int, *, write: str) -> None:
    """Raise `StructureError` unless it is a whole number >= `least`, or a range of such."""
    if not isinstance(count, tuple | PerClass):
        check_count(name, count, least, write=write)
        return
    whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends(count))
    if not (whole and len(ends(count)) == 2 and least <= ends(count)[0] <= ends(count)[1]):
        raise StructureError(
            f"{name} is given as a range without a number in it",
            got=f"{name}={count!r}",
            expected=f"(least, most), whole numbers with {least} <= least <= most",
            write=f"{name}=({least}, {least + 4})",
        )


def draw_count(key: PRNGKeyArray, count: Count | PerClass, classes: int) -> Int[Array, " classes"]:
    """How many of each class, uniform over the range: the same of all, or each for itself."""
    least, most = ends(count)
    shape = (classes,) if isinstance(count, PerClass) else (1,)
    drawn = jax.random.randint(key, shape, least, most + 1, jnp.int32)
    return jnp.broadcast_to(drawn, (classes,))
