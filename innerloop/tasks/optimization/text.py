"""Text that comes with scikit-learn, as tasks of a character-level language model."""

import string

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from innerloop.arguments import at_least, checked
from innerloop.checks import optional_package
from innerloop.errors import DataError
from innerloop.problem import Episode, Examples
from innerloop.tasks.base import OneByOne

ALPHABET = string.ascii_lowercase + " .,\n0"
"""Letters without case, and 0 for every digit. Any other character is one more token."""

VOCABULARY = len(ALPHABET) + 1

_QUERY_SHARE = 0.2


def descriptions(*data_sets: str) -> str:
    """The descriptions of data sets in scikit-learn, one after the other: English text of about
    2,000 to 5,000 characters each.

    Args:
        *data_sets: Some of `"breast_cancer"`, `"diabetes"`, `"digits"`, `"iris"`, `"linnerud"`,
            `"wine"`.
    """
    sklearn = optional_package("sklearn.datasets", "descriptions()", extra="data")
    return "\n".join(getattr(sklearn, f"load_{name}")().DESCR for name in data_sets)


def tokens(text: str) -> np.ndarray:
    """The characters of a text as numbers below `VOCABULARY`."""
    numbers = {character: i for i, character in enumerate(ALPHABET)}
    numbers |= dict.fromkeys(string.digits, numbers["0"])
    return np.array([numbers.get(it, len(ALPHABET)) for it in text.lower()], np.int32)


class TextTasks(OneByOne):
    """Tasks on a text: `rows` random windows to train on, and as many from its last fifth to test.

    Support and query are `Examples` of tokens: inputs `(rows, length)`, and for targets the next
    token at each position, `(rows, length)`.

    Args:
        text: Any text.
        rows: The windows of the support set, and of the query set.
        length: The tokens of a window.

    Raises:
        StructureError: If `rows` or `length` is below 1.
        DataError: If the last fifth of the text has no whole window.
    """

    tokens: jax.Array
    rows: int = eqx.field(static=True)
    length: int = eqx.field(static=True)

    @checked(rows=at_least(1, such_as=64), length=at_least(1, such_as=32))
    def __init__(self, text: str, rows: int, length: int):
        self.rows, self.length = rows, length
        self.tokens = jnp.asarray(tokens(text))
        if _QUERY_SHARE * len(text) <= length:
            raise DataError(
                "the text is too short",
                got=f"{len(text)} characters for windows of {length}",
                expected=f"more than {int(length / _QUERY_SHARE)} characters",
                write=f"TextTasks(text, rows, length={max(int(_QUERY_SHARE * len(text)) - 1, 1)})",
            )

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """One task."""
        border = int((1 - _QUERY_SHARE) * len(self.tokens))
        support_key, query_key = jax.random.split(key)
        return Episode(
            self._windows(support_key, 0, border),
            self._windows(query_key, border, len(self.tokens)),
        )

    def _windows(self, key: PRNGKeyArray, first: int, end: int) -> Examples:
        starts = jax.random.randint(key, (self.rows, 1), first, end - self.length, jnp.int32)
        windows = self.tokens[starts + jnp.arange(self.length + 1, dtype=jnp.int32)[None]]
        return Examples(windows[:, :-1], windows[:, 1:])
