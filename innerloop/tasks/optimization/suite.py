"""The task suite: families to train a learned optimizer on, and families to test it on."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from innerloop.arguments import at_least, checked
from innerloop.models import (
    conv_features,
    cross_entropy,
    linear_head,
    mean_squared_error,
    mlp,
    per_example,
    transformer,
)
from innerloop.tasks.optimization.data_sets import (
    VOCABULARY,
    Table,
    TableTasks,
    TextTasks,
    breast_cancer_table,
    descriptions,
    diabetes_table,
    digits_table,
    wine_table,
)
from innerloop.tasks.optimization.family import Family, quadratic_family, supervised_family

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: Mapping[str, Activation] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "swish": jax.nn.swish,
}
"""The activation functions of `mlp_family`, by name."""

ROWS, BATCH = 256, 32
"""Rows of a task's support set, if the table has enough, and rows that a step sees."""


def mlp_family(
    table: Table,
    hidden: tuple[int, ...] = (),
    activation: str = "relu",
    scale: tuple[float, float] = (1.0, 1.0),
) -> Family:
    """Training a multilayer perceptron on a table; without hidden layers, a linear model.

    Classes are learned by cross-entropy (without hidden layers: logistic regression), real targets
    by mean squared error.

    Args:
        table: The data set.
        hidden: The widths of the hidden layers.
        activation: A name in `ACTIVATIONS`.
        scale: See `supervised_family`.
    """
    inputs = int(np.prod(table.inputs.shape[1:]))
    model = mlp([inputs, *hidden, table.outputs], ACTIVATIONS[activation])
    shape = f"{'x'.join(map(str, hidden))}-{activation}" if hidden else "linear"
    return _on_table(f"{table.name}-{shape}", model, table, scale)


def conv_family(table: Table, filters: int = 8, blocks: int = 2) -> Family:
    """Training a small convolutional network on a table of images; blocks as in `conv_features`,
    normalised within each example.
    """
    channels = table.inputs.shape[-1]
    features = conv_features(filters, channels, blocks=blocks, normalisation=per_example)
    model = linear_head(features, filters, table.outputs)
    return _on_table(f"{table.name}-conv-{filters}x{blocks}", model, table)


def _on_table(name, model, table, scale=(1.0, 1.0)) -> Family:
    loss = cross_entropy if np.issubdtype(table.targets.dtype, np.integer) else mean_squared_error
    tasks = TableTasks(table, min(ROWS, len(table.inputs) // 2))
    return supervised_family(name, model, loss, tasks, BATCH, scale)


def language_family(
    name: str, text: str, width: int = 16, depth: int = 1, heads: int = 2, length: int = 16
) -> Family:
    """Training a character-level `transformer` on windows of a text."""
    model = transformer(VOCABULARY, width, depth, heads, length)
    return supervised_family(name, model, cross_entropy, TextTasks(text, 64, length), batch=8)


def training_families() -> list[Family]:
    """Families to meta-train on: quadratics, linear models, small networks."""
    digits, wine = digits_table(), wine_table()
    return [
        quadratic_family(np.logspace(-2, 0, 20)),
        quadratic_family(np.logspace(-1, 0, 10), noise=0.1, name="noisy-quadratic"),
        mlp_family(digits),
        mlp_family(wine),
        mlp_family(digits, (16,), "tanh"),
        mlp_family(digits, (32,), "relu", scale=(0.5, 2.0)),
        conv_family(digits),
    ]


def held_out_families() -> list[Family]:
    """Families to try on: worse conditioned, on other data, deeper, wider, with other activations,
    and language models.

    None has a family name, or a pair of architecture and data, of the training families.
    """
    digits, cancer = digits_table(), breast_cancer_table()
    return [
        quadratic_family(np.logspace(-3, 0, 50), name="ill-conditioned-quadratic"),
        mlp_family(cancer),
        mlp_family(diabetes_table(), (16,), "tanh"),
        mlp_family(digits, (64, 64), "gelu"),
        mlp_family(cancer, (32,), "swish"),
        conv_family(digits, filters=16, blocks=3),
        language_family("text", descriptions("digits", "wine", "diabetes")),
        language_family("other-text", descriptions("breast_cancer", "iris"), width=32),
    ]


@checked(count=at_least(1))
def random_families(
    seed: int,
    count: int,
    tables: tuple[Table, ...] | None = None,
    widths: tuple[int, int] = (8, 64),
    depths: tuple[int, int] = (0, 3),
) -> list[Family]:
    """Networks of random data set, depth, widths, activation and scale of the initialisation.

    Each is a family of its own, since shapes are known while tracing; the same seed gives the same
    families.

    Args:
        seed: An integer seed.
        count: The number of families.
        tables: The data sets to choose from; by default the digits and the wines.
        widths: The range of the width of each hidden layer, drawn log-uniformly.
        depths: The range of the number of hidden layers.

    Raises:
        StructureError: If `count` is below 1.
    """
    tables = tables or (digits_table(), wine_table())
    rng = np.random.default_rng(seed)

    def family(number: int) -> Family:
        depth = rng.integers(depths[0], depths[1] + 1)
        low, high = np.log(widths[0]), np.log(widths[1] + 1)
        hidden = tuple(int(width) for width in np.exp(rng.uniform(low, high, depth)))
        scale = float(np.exp(rng.uniform(np.log(0.5), np.log(2))))
        table = tables[rng.integers(len(tables))]
        activation = str(rng.choice(list(ACTIVATIONS)))
        drawn = mlp_family(table, hidden, activation, (scale, scale))
        return drawn._replace(name=f"{number}-{drawn.name}")

    return [family(number) for number in range(count)]
