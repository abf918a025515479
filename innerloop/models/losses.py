"""Losses on `Examples`: means over the rows that count."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

from innerloop.arguments import checked
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.labels import IGNORED, class_scores, labels
from innerloop.masks import blank_rows, masked_mean
from innerloop.models.base import MODEL, Model
from innerloop.precision import at_least_float32
from innerloop.problem import Examples

ExamplesLoss = Callable[[PyTree, Examples], tuple[Scalar, dict]]
"""`(predictions, examples) -> (loss, metrics)`, such as `cross_entropy`."""


@checked(model=MODEL)
def supervised_loss(model: Model, loss: ExamplesLoss) -> Callable:
    """The loss of a model on `Examples`, with the signature of a `Problem`'s losses.

    The parameters are all arrays of the model. If a model has frozen arrays or a model state, or
    behaves differently in training, use `supervised_problem`.

    Args:
        model: The network.
        loss: The loss of its outputs, such as `cross_entropy`.

    Returns:
        `(params, meta, batch, key) -> (loss, metrics)`.

    Raises:
        StructureError: If the model has frozen arrays, a model state or `learn`.
    """
    if any(part is not None for part in (model.frozen, model.state, model.learn)):
        raise StructureError(
            "the losses of this model differ in training and prediction, or need frozen arrays",
            got="a Model with frozen, state or learn",
            expected="a problem with both losses",
            write="models.supervised_problem(model, loss)",
        )

    def judged(params: PyTree, meta: PyTree, batch: Examples, key: PRNGKeyArray):
        return loss(model.apply(params, batch.inputs, key, batch.mask), batch)

    return judged


def cross_entropy(
    logits: Float[Array, "..."], examples: Examples
) -> tuple[Scalar, dict[str, Scalar]]:
    r"""Cross-entropy of a softmax, in nats, and `{"accuracy": share of rows classified rightly}`.

    $$-\frac{1}{n} \sum_{i=1}^{n} \log \text{softmax}(\text{logits}_i)[\text{target}_i]$$

    over the n rows that are valid and have a label. `examples.targets` holds integer classes; its
    shape is `(rows,)` or, in general, that of the logits without the last axis. `IGNORED`, which is
    -100, marks a row or a position without a label. Outputs that are not classes of the task,
    according to `examples.ways` or `examples.classes`, are left out of the softmax and are never
    predicted. The loss is computed in float32 at least, without the label smoothing in the code of
    MAML's authors. If no row counts, loss and accuracy are 0. If a label is not a class, both are
    NaN in a compiled function; a label whose value is known is refused instead.

    Raises:
        StructureError: While tracing, if targets are not integers, shapes do not fit, or a label
            whose value is known is not a class of its task.
    """
    targets = jnp.asarray(examples.targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise StructureError(
            "cross_entropy needs integer classes",
            got=f"targets {describe(targets)}",
            expected=f"integers from 0 to ways - 1, or {IGNORED} in rows without a label",
        )
    if logits.ndim < 2 or logits.shape[:-1] != targets.shape:
        raise StructureError(
            "logits and targets do not fit",
            got=f"logits {describe(logits)}, targets {describe(targets)}",
            expected="logits (rows, ways), targets (rows,)",
        )
    found = labels(examples, logits.shape[-1])
    logits = class_scores(at_least_float32(logits), examples)
    logits = jnp.where(found.counts[..., None], logits, jnp.zeros((), logits.dtype))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, found.targets)
    predicted = jnp.argmax(logits, axis=-1)
    right = predicted == found.targets.astype(predicted.dtype)
    return found.mean(losses), {"accuracy": found.mean(right.astype(losses.dtype))}


def mean_squared_error(
    predictions: Float[Array, "..."], examples: Examples
) -> tuple[Scalar, dict[str, Scalar]]:
    r"""Mean squared error over rows and outputs, and `{"mse": the same}`.

    $$\frac{1}{n d} \sum_{i=1}^{n} \lVert \text{prediction}_i - \text{target}_i \rVert^2$$

    over the n rows that the mask leaves, each with d outputs, in the target's unit squared.
    Computed in float32 at least. Where the mask leaves no row it is 0.

    Raises:
        StructureError: While tracing, if predictions and targets differ in shape: (rows, 1)
            and (rows,) would broadcast to all pairs of rows.
    """
    targets = jnp.asarray(examples.targets)
    if predictions.ndim < 1 or predictions.shape != targets.shape:
        raise StructureError(
            "predictions and targets differ in shape",
            got=f"predictions {describe(predictions)}, targets {describe(targets)}",
            expected="the same shape (rows, ...) for both",
        )
    predictions = blank_rows(at_least_float32(predictions), examples.mask)
    targets = blank_rows(targets.astype(predictions.dtype), examples.mask)
    loss = masked_mean(jnp.square(predictions - targets), examples.mask)
    return loss, {"mse": loss}
