"""Whether probabilities mean what they say: the expected calibration error."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.labels import class_scores, labels
from innerloop.masks import blank_rows
from innerloop.precision import at_least_float32
from innerloop.problem import Examples

BINS = 15
"""As in Guo et al. 2017."""


def calibration_sums(
    logits: Float[Array, "rows classes"], examples: Examples
) -> Float[Array, "bins 3"]:
    """Of the predictions in each bin of confidence: their number, and the sums of confidence and
    of right ones.

    The confidence is the probability of the predicted class. Rows that are masked or have no label
    are not counted. The sums of several batches add up to the sums of all rows.
    """
    found = labels(examples, logits.shape[-1])
    probabilities = jax.nn.softmax(class_scores(at_least_float32(logits), examples))
    confidence = jnp.max(probabilities, axis=-1)
    predicted = jnp.argmax(probabilities, axis=-1)
    right = predicted == found.targets.astype(predicted.dtype)
    # A bin holds its upper end and not its lower one.
    place = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    columns = (jnp.ones_like(confidence), confidence, right.astype(confidence.dtype))
    each = blank_rows(jnp.stack(columns, axis=-1), found.counts)
    return found.marked(jnp.zeros((BINS, 3), each.dtype).at[place].add(each))


def expected_calibration_error(sums: np.ndarray) -> np.ndarray:
    r"""The error of all predictions, from the `calibration_sums` of single tasks.

    $$\text{ECE} = \sum_{b=1}^{15} \frac{n_b}{n} |\text{accuracy}_b - \text{confidence}_b|$$

    (Guo et al. 2017, "On calibration of modern neural networks", equation 3): `(tasks, ..., 15, 3)`
    becomes `(...,)`, numbers from 0 to 1. NaN where a prediction is not finite.
    """
    numbers, confidence, right = np.moveaxis(np.asarray(sums, np.float64).sum(axis=0), -1, 0)
    return np.asarray(np.abs(right - confidence).sum(axis=-1) / numbers.sum(axis=-1))
