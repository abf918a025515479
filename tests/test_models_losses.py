"""Losses on examples: equal to numpy, masked, and strict about shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from innerloop.errors import StructureError
from innerloop.models import cross_entropy, mean_squared_error
from innerloop.problem import Examples

MASK = np.array([True, False, True, True, False, True])
rng = np.random.default_rng(0)
LOGITS, CLASSES = 3 * rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
VALUES = rng.normal(size=(6, 2))


def numpy_cross_entropy(logits, classes):
    shifted = logits - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    loss = -log_softmax[np.arange(len(classes)), classes].mean()
    return loss, (logits.argmax(1) == classes).mean()


def examples(targets, mask=None):
    mask = None if mask is None else jnp.asarray(mask)
    return Examples(jnp.zeros((len(targets), 1)), jnp.asarray(targets), mask)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_cross_entropy_equals_numpy(x64, kind):
    logits, classes = jnp.asarray(LOGITS), CLASSES.astype(kind)
    loss, aux = jax.jit(cross_entropy)(logits, examples(classes))
    np.testing.assert_allclose((loss, aux["accuracy"]), numpy_cross_entropy(LOGITS, CLASSES))
    loss, aux = jax.jit(cross_entropy)(logits, examples(classes, MASK))
    expected = numpy_cross_entropy(LOGITS[MASK], CLASSES[MASK])
    np.testing.assert_allclose((loss, aux["accuracy"]), expected)


def test_mean_squared_error_equals_numpy(x64):
    predictions, targets = jnp.asarray(VALUES), VALUES[::-1].copy()
    loss, aux = jax.jit(mean_squared_error)(predictions, examples(targets))
    np.testing.assert_allclose(loss, np.square(VALUES - targets).mean())
    assert aux["mse"] == loss
    loss, _ = jax.jit(mean_squared_error)(predictions, examples(targets, MASK))
    np.testing.assert_allclose(loss, np.square(VALUES - targets)[MASK].mean())


@pytest.mark.parametrize("loss", [cross_entropy, mean_squared_error])
def test_without_any_row_loss_and_gradient_are_zero(loss):
    targets = CLASSES if loss is cross_entropy else LOGITS
    nothing = examples(targets.astype("int32" if loss is cross_entropy else "float32"), 6 * [False])
    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, aux), gradient = differentiate(jnp.asarray(LOGITS, jnp.float32), nothing)
    assert value == 0 and not gradient.any() and all(leaf == 0 for leaf in aux.values())


@pytest.mark.parametrize("loss", [cross_entropy, mean_squared_error])
def test_masked_rows_are_not_read(x64, loss):
    targets = CLASSES if loss is cross_entropy else LOGITS + 1
    logits = jnp.asarray(LOGITS)
    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, _), gradient = differentiate(logits, examples(targets, MASK))
    (other, _), spoilt = differentiate(logits.at[1].set(np.nan), examples(targets, MASK))
    assert value == other and jnp.array_equal(gradient, spoilt)
    gradient = np.asarray(gradient)
    assert not gradient[~MASK].any() and gradient[MASK].any(axis=1).all()


@pytest.mark.parametrize("loss", [cross_entropy, mean_squared_error])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_are_computed_in_float32_at_least(loss, dtype):
    targets = CLASSES.astype("int32") if loss is cross_entropy else LOGITS.astype("float32")
    predictions = jnp.asarray(LOGITS, dtype)
    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, _), gradient = differentiate(predictions, examples(targets))
    assert value.dtype == jnp.float32 and gradient.dtype == predictions.dtype


def test_cross_entropy_takes_one_class_per_position(x64):
    logits, classes = jnp.asarray(LOGITS).reshape(2, 3, 4), CLASSES.reshape(2, 3)
    loss, _ = cross_entropy(logits, examples(classes))
    np.testing.assert_allclose(loss, numpy_cross_entropy(LOGITS, CLASSES)[0])


@pytest.mark.parametrize(("predictions", "targets"), [((6, 1), (6,)), ((6,), (6, 1)), ((6,), (5,))])
def test_mean_squared_error_never_broadcasts(predictions, targets):
    with pytest.raises(StructureError, match="differ in shape"):
        mean_squared_error(jnp.ones(predictions), examples(jnp.ones(targets)))


@pytest.mark.parametrize("targets", [(6, 1), (5,), (6, 4)])
def test_cross_entropy_refuses_shapes(targets):
    with pytest.raises(StructureError, match="logits and targets do not fit"):
        cross_entropy(jnp.ones((6, 4)), examples(jnp.zeros(targets, jnp.int32)))


def test_cross_entropy_refuses_real_targets():
    with pytest.raises(StructureError, match="integer classes"):
        cross_entropy(jnp.ones((6, 4)), examples(jnp.zeros(6)))


@pytest.mark.parametrize("mask", [np.ones(5, bool), np.ones(6, "float32")])
def test_losses_refuse_masks_that_are_not_one_boolean_per_row(mask):
    with pytest.raises(StructureError, match="mask does not fit"):
        mean_squared_error(jnp.ones((6, 2)), examples(jnp.ones((6, 2)), mask))
