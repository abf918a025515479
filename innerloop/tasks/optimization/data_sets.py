"""Data sets and texts that come with scikit-learn, and tasks made from them."""

import string
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from innerloop.arguments import at_least, checked
from innerloop.checks import optional_package
from innerloop.errors import DataError
from innerloop.precision import default_float
from innerloop.problem import Episode, Examples
from innerloop.tasks.base import OneByOne

ALPHABET = string.ascii_lowercase + " .,\n0"
"""Letters without case, and 0 for every digit. Any other character is one more token."""

VOCABULARY = len(ALPHABET) + 1

_QUERY_SHARE = 0.2


class Table(NamedTuple):
    """A data set as arrays.

    Args:
        name: The name of the data set.
        inputs: `(rows, ...)`, of order 1.
        targets: Integer classes `(rows,)`, or real numbers `(rows, outputs)` of unit variance.
        outputs: The number of classes, or of real targets.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    outputs: int


def _standard(values: Any) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def _of_sklearn(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a data set that scikit-learn has on board."""
    sklearn = optional_package("sklearn.datasets", f"the {name} data set", extra="data")
    return getattr(sklearn, f"load_{name}")(return_X_y=True)


def digits_table() -> Table:
    """1,797 handwritten digits: inputs `(8, 8, 1)` from 0 (paper) to 1 (ink), ten classes."""
    pixels, labels = _of_sklearn("digits")
    return Table("digits", pixels.reshape(-1, 8, 8, 1) / 16, labels, 10)


def wine_table() -> Table:
    """178 wines: 13 standardised measurements, three cultivars."""
    measured, labels = _of_sklearn("wine")
    return Table("wine", _standard(measured), labels, 3)


def breast_cancer_table() -> Table:
    """569 tumours: 30 standardised measurements, two classes."""
    measured, labels = _of_sklearn("breast_cancer")
    return Table("breast-cancer", _standard(measured), labels, 2)


def diabetes_table() -> Table:
    """442 patients: ten standardised measurements, one standardised target."""
    measured, progress = _of_sklearn("diabetes")
    return Table("diabetes", _standard(measured), _standard(progress)[:, None], 1)


class TableTasks(OneByOne):
    """Tasks on a table: `rows` random rows to train on, and as many others to judge by.

    Support and query are `Examples` in JAX's default floating-point type, classes as int32. No row
    is in both.

    Args:
        table: The data set.
        rows: The rows of the support set, and of the query set.

    Raises:
        StructureError: If `rows` is below 1.
        DataError: If `rows` is more than half of the table.
    """

    inputs: jax.Array
    targets: jax.Array
    rows: int = eqx.field(static=True)

    @checked(rows=at_least(1, such_as=128))
    def __init__(self, table: Table, rows: int):
        self.rows = rows
        if 2 * rows > len(table.inputs):
            raise DataError(
                "there are not enough rows for a support and a query set",
                got=f"rows={rows} of {len(table.inputs)} in {table.name}",
                expected=f"at most {len(table.inputs) // 2}, half of the table",
            )
        whole = np.issubdtype(table.targets.dtype, np.integer)
        self.inputs = jnp.asarray(table.inputs, default_float())
        self.targets = jnp.asarray(table.targets, jnp.int32 if whole else default_float())

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """One task."""
        order = jax.random.permutation(key, len(self.targets))
        examples = lambda rows: Examples(self.inputs[rows], self.targets[rows])
        return Episode(examples(order[: self.rows]), examples(order[self.rows : 2 * self.rows]))


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
