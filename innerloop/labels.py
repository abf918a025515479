"""Labels: the classes of a task, the rows that have a label, and labels that are not classes.

One rule holds for all losses, metrics and heads. A label is an integer from 0 to n - 1, where n is
the number of classes of the task. `IGNORED` marks a row or a position without a label, which counts
in no loss, metric or head. Any other label is refused if its value is known. In a compiled
function, where the value is not known, everything that is computed from it is NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Scalar

from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.masks import masked_mean, of_classes, row_mask
from innerloop.problem import Examples

IGNORED = -100
"""The target of a row without a label, as in PyTorch's cross-entropy."""


class Labels(NamedTuple):
    """The labels of examples.

    Attributes:
        targets: The classes, and 0 if there is no label.
        counts: In the shape of the targets, False if there is no label or the row is padding.
        sound: Whether every label that counts is a class of its task.
        mask: The mask of the examples.
    """

    targets: Int[Array, "..."]
    counts: Bool[Array, "..."]
    sound: Bool[Array, ""]
    mask: Bool[Array, " rows"] | None

    def marked(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """`values`; they and their derivatives are NaN if a label is not a class of its task."""
        return values * jnp.where(self.sound, 1, jnp.nan).astype(values.dtype)

    def mean(self, values: Float[Array, "..."]) -> Scalar:
        """The mean of `values`, which have the shape of the targets, over the labels that count.

        It is 0 if no label counts, and NaN if a label is not a class of its task.
        """
        rows = jnp.ones(values.shape, bool)
        if self.mask is not None:
            rows = jnp.broadcast_to(row_mask(values, self.mask), values.shape)
        # The mean over all valid rows is corrected by `share`, which is exactly 1 if each of these
        # rows has a label.
        share = jnp.sum(rows) / jnp.maximum(jnp.sum(self.counts), 1)
        mean = masked_mean(jnp.where(self.counts, values, 0), self.mask)
        return self.marked(mean * share.astype(mean.dtype))


def labels(examples: Examples, outputs: int) -> Labels:
    """The labels of examples for a network or a head with this number of outputs.

    Raises:
        StructureError: If a label whose value is known is not a class of its task, or the task has
            more classes than there are outputs.
    """
    ways, targets = _ways(examples, outputs), jnp.asarray(examples.targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise StructureError(
            "labels are integers", got=f"targets {describe(targets)}", expected="integer classes"
        )
    classes = None if examples.classes is None else class_mask(examples, outputs)
    given = (examples.targets, examples.mask, examples.classes)
    if not any(isinstance(each, Tracer) for each in given):
        _refuse_others(examples, outputs, ways, classes)
    whole = jnp.result_type(int)
    if jnp.iinfo(targets.dtype).max > jnp.iinfo(whole).max:  # it would become a negative number
        targets = jnp.minimum(targets, jnp.iinfo(whole).max)
    targets = targets.astype(whole)
    inside = (targets >= 0) & (targets < ways)
    safe = jnp.where(inside, targets, 0)
    if classes is not None:
        inside &= jnp.take_along_axis(jnp.asarray(classes), safe[..., None], axis=-1)[..., 0]
    counts = targets != IGNORED
    if examples.mask is not None:
        counts &= row_mask(targets, examples.mask)
    return Labels(safe, counts, ~jnp.any(counts & ~inside), examples.mask)


def class_mask(examples: Examples, outputs: int) -> Bool[Array | np.ndarray, "..."] | None:
    """For each row, whether each output is a class of the task; None if all outputs are."""
    ways, classes = _ways(examples, outputs), examples.classes
    if classes is None:
        if ways == outputs:
            return None
        rows = jnp.shape(examples.targets)
        return jnp.broadcast_to(jnp.arange(outputs, dtype=jnp.int32) < ways, (*rows, outputs))
    *rows, most = jnp.shape(classes) or (0,)
    fits = tuple(rows) == jnp.shape(examples.targets) and most <= outputs
    if classes.dtype != jnp.bool_ or not fits:
        raise StructureError(
            "the classes of the task do not fit the scores",
            got=f"classes {describe(classes)} for targets {describe(examples.targets)} and "
            f"{outputs} outputs",
            expected="one boolean per row and output",
        )
    beyond = [(0, 0)] * (classes.ndim - 1) + [(0, outputs - most)]
    pad = jnp.pad if isinstance(classes, Tracer) else np.pad  # known values stay known
    return pad(classes, beyond) if most < outputs else classes


def class_scores(
    scores: Float[Array, "*rows outputs"], examples: Examples, absent: float = -np.inf
) -> Float[Array, "*rows outputs"]:
    """The scores of a network or a head, with `absent` at outputs that are not classes of the task.

    With the default, the softmax of the result is 0 at these outputs, and the largest score belongs
    to a class. The scores are unchanged if all outputs are classes.

    Args:
        scores: `(rows, ..., outputs)`.
        examples: The examples to which the scores belong; `ways` and `classes` of the examples say
            which outputs are classes.
        absent: The value for the other outputs.

    Raises:
        StructureError: If the examples have more classes than there are scores, or their `classes`
            do not hold one boolean for each row and class.
    """
    classes = class_mask(examples, scores.shape[-1]) if scores.ndim else None
    return of_classes(scores, classes, absent)


def _ways(examples: Examples, outputs: int) -> int:
    """The number of classes: that of the examples, or else the number of outputs."""
    ways = outputs if examples.ways is None else examples.ways
    if ways > outputs:
        raise StructureError(
            "the task has more classes than there are outputs",
            got=f"ways={ways}, {outputs} outputs",
            expected="an output for each class",
            write=f"a network of {ways} outputs",
        )
    return ways


def _refuse_others(
    examples: Examples, outputs: int, ways: int, classes: Array | np.ndarray | None
) -> None:
    """Raise `StructureError` for a label that is not a class of its task."""
    targets = np.asarray(examples.targets)
    counted = targets != IGNORED
    if examples.mask is not None:
        with jax.ensure_compile_time_eval():
            counted &= np.asarray(row_mask(jnp.asarray(targets), jnp.asarray(examples.mask)))
    found = targets[counted]
    if found.size and (found.min() < 0 or found.max() >= ways):
        reach = int(found.min() if found.min() < 0 else found.max())
        more = "" if reach < 0 else f"a network of {reach + 1} outputs, or "
        more = f"ways={reach + 1}, or " if ways <= reach < outputs else more
        raise StructureError(
            "a label is not a class",
            got=f"targets reach {reach}, the network has {outputs} outputs"
            + (f", the task has {ways} classes" if ways < outputs else ""),
            expected=f"whole numbers from 0 to {ways - 1}; {IGNORED} in a row without a label",
            write=f"{more}labels from 0 on, such as numpy.unique(labels, return_inverse=True)[1], "
            f"or {IGNORED} in rows without a label",
        )
    if classes is None or not found.size:
        return
    classes = np.asarray(classes)
    row = np.take_along_axis(classes, np.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    if not row[counted].all():
        label = targets[counted & ~row].flat[0]
        raise StructureError(
            "a label is not a class of its row",
            got=f"a row with the label {label}, whose classes are "
            f"{np.flatnonzero(classes[counted & ~row][0]).tolist()}",
            expected="a label that classes marks",
        )
