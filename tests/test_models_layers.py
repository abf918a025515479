"""Layers and normalisation: equal forms, derivatives of second order, formulas, padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from innerloop.errors import StructureError
from innerloop.masks import masked_mean
from innerloop.models.layers import (
    conv,
    conv_as_matmul,
    conv_init,
    conv_xla,
    dense,
    dense_init,
    max_pool,
)
from innerloop.models.normalisation import EPSILON, none, per_example, transductive

few_examples = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
sides = st.integers(1, 8)


def normal(seed, *shape, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.dtype(dtype))


def close(left, right, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def derivatives(function):
    """Value, gradient and Hessian-vector product of a nonlinear scalar of `function`."""

    def scalar(args):
        return jnp.sum(jnp.sin(function(*args)))

    def slope(args, directions):
        gradient = jax.grad(scalar)(args)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, directions)))

    return jax.jit(
        lambda args, v: (function(*args), jax.grad(scalar)(args), jax.grad(slope)(args, v))
    )


# Convolution


@few_examples
@given(height=sides, width=sides, stride=st.sampled_from([1, 2, 3]), size=st.sampled_from([1, 3]))
def test_conv_forms_agree_up_to_the_second_derivative(x64, height, width, stride, size):
    args = normal(0, size, size, 2, 3), normal(1, 2, height, width, 2)
    directions = normal(2, *args[0].shape), normal(3, *args[1].shape)
    ours = derivatives(lambda w, x: conv_as_matmul(w, x, stride))(args, directions)
    xla = derivatives(lambda w, x: conv_xla(w, x, stride))(args, directions)
    close(ours, xla)
    assert ours[0].shape == (2, -(-height // stride), -(-width // stride), 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_forms_agree_under_vmap_with_weights_per_task(x64, stride):
    args = normal(0, 3, 3, 3, 2, 4), normal(1, 3, 2, 5, 6, 2)
    directions = normal(2, *args[0].shape), normal(3, *args[1].shape)
    ours = jax.vmap(derivatives(lambda w, x: conv_as_matmul(w, x, stride)))(args, directions)
    close(ours, jax.vmap(derivatives(lambda w, x: conv_xla(w, x, stride)))(args, directions))
    one = derivatives(lambda w, x: conv_as_matmul(w, x, stride))
    task = jax.tree.map(lambda leaf: leaf[1], (args, directions))
    close(jax.tree.map(lambda leaf: leaf[1], ours), one(*task))


def test_conv_kernels_need_not_be_square(x64):
    w, x = normal(0, 2, 5, 1, 2), normal(1, 2, 7, 6, 1)
    close(conv_as_matmul(w, x, 2), conv_xla(w, x, 2))


def test_conv_is_the_matmul_form_on_cpu_and_xla_elsewhere(monkeypatch):
    def operations():
        args = jnp.ones((3, 3, 1, 2)), jnp.ones((1, 4, 4, 1))
        return str(jax.make_jaxpr(lambda w, x: conv(w, x))(*args))  # a new function: no trace cache

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert "conv_general_dilated" not in operations()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in operations()


@pytest.mark.parametrize("layer", ["conv", "max_pool", "transductive", "per_example"])
def test_second_derivatives_three_ways(x64, layer):
    """Reverse over reverse, forward over reverse, and finite differences of the gradient."""
    x, w = normal(0, 4, 6, 6, 2), normal(1, 3, 3, 2, 2)
    scaled = {"scale": normal(2, 2), "shift": normal(3, 2)}
    function = {
        "conv": lambda args: conv_as_matmul(args["w"], args["x"], 2),
        "max_pool": lambda args: max_pool(args["x"]),
        "transductive": lambda args: transductive.apply(args["p"], args["x"], None),
        "per_example": lambda args: per_example.apply(args["p"], args["x"], None),
    }[layer]
    args = {"x": x, "w": w, "p": scaled}
    v = jax.tree.map(lambda leaf: normal(4, *leaf.shape), args)
    gradient = jax.jit(jax.grad(lambda args: jnp.sum(jnp.sin(function(args)))))

    def along(step):
        return gradient(jax.tree.map(lambda a, b: a + step * b, args, v))

    def slope(args):
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient(args), v)))

    reverse = jax.jit(jax.grad(slope))(args)
    forward = jax.jit(lambda args: jax.jvp(gradient, (args,), (v,))[1])(args)
    differences = jax.tree.map(lambda a, b: (a - b) / 2e-6, along(1e-6), along(-1e-6))
    close(reverse, forward, 1e-11)
    close(reverse, differences, 1e-6)
    assert any(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(reverse))


@pytest.mark.parametrize(
    ("weights", "x"),
    [((3, 3, 2, 4), (5, 8, 8, 1)), ((3, 3, 1, 4), (5, 8, 8)), ((3, 1, 4), (5, 8, 8, 1))],
)
def test_conv_refuses_what_does_not_fit(weights, x):
    for form in (conv, conv_as_matmul, conv_xla):
        with pytest.raises(StructureError, match="do not fit the convolution"):
            form(jnp.ones(weights), jnp.ones(x))
    with pytest.raises(StructureError, match="stride"):
        conv(jnp.ones((3, 3, 1, 1)), jnp.ones((1, 4, 4, 1)), 0)


# Dense and pooling


def test_dense_equals_numpy_and_refuses_other_widths(x64):
    params = dense_init(jax.random.key(0), 3, 2)
    params["bias"] = normal(1, 2)
    x = normal(2, 5, 3)
    close(dense(params, x), np.asarray(x) @ np.asarray(params["weights"]) + params["bias"][None])
    with pytest.raises(StructureError, match=r"shape \(rows, 3\)"):
        dense(params, normal(2, 5, 4))
    with pytest.raises(StructureError, match=r"shape \(rows, 3\)"):
        dense(params, normal(2, 3))


def test_initialisers_follow_the_default_dtype_and_are_replaceable(x64):
    assert conv_init(jax.random.key(0), 2, 4).dtype == jnp.float64
    zeros = jax.nn.initializers.zeros
    assert not dense_init(jax.random.key(0), 3, 2, zeros)["weights"].any()
    with jax.enable_x64(False):
        weights = conv_init(jax.random.key(0), 64, 64)
    assert weights.dtype == jnp.float32
    limit = np.sqrt(6 / (9 * (64 + 64)))  # Glorot: uniform in ±√(6 / (fan in + fan out))
    assert 0.99 * limit < np.abs(weights).max() <= limit


@few_examples
@given(height=st.integers(2, 7), width=st.integers(2, 7))
def test_max_pool_equals_numpy(x64, height, width):
    x = np.asarray(normal(0, 3, height, width, 2))
    pooled = np.asarray(max_pool(jnp.asarray(x)))
    assert pooled.shape == (3, height // 2, width // 2, 2)
    for i, j in itertools.product(range(height // 2), range(width // 2)):
        window = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        close(pooled[:, i, j], window.max((1, 2)))


def test_max_pool_refuses_images_without_a_window():
    with pytest.raises(StructureError, match="too small"):
        max_pool(jnp.ones((1, 1, 4, 1)))


# Normalisation


def reference(x, axes, params):
    x = np.asarray(x)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    scale, shift = (np.asarray(params[name]) for name in ("scale", "shift"))
    return (x - mean) / np.sqrt(variance + EPSILON) * scale + shift


@pytest.mark.parametrize("shape", [(6, 3), (6, 4, 5, 3)])
def test_policies_equal_numpy(x64, shape):
    x, params = 2 + 3 * normal(0, *shape), {"scale": normal(1, 3), "shift": normal(2, 3)}
    over_rows, within_rows = tuple(range(len(shape) - 1)), tuple(range(1, len(shape)))
    close(transductive.apply(params, x, None), reference(x, over_rows, params))
    close(per_example.apply(params, x, None), reference(x, within_rows, params))
    shift = params["shift"]
    close(none.apply({"shift": shift}, x, None), np.asarray(x) + np.asarray(shift))


@pytest.mark.parametrize("policy", [transductive, per_example, none])
def test_policies_start_as_pure_normalisation(x64, policy):
    params = policy.init(3)
    assert all(leaf.shape == (3,) and leaf.dtype == jnp.float64 for leaf in params.values())
    assert not params["shift"].any() and np.all(params.get("scale", np.ones(3)) == 1)


def test_masked_rows_count_for_nothing(x64):
    x, params = normal(0, 6, 4, 4, 3), {"scale": normal(1, 3), "shift": normal(2, 3)}
    mask = jnp.array([True, True, False, True, False, True])

    def outputs(x):
        return transductive.apply(params, x, mask)[np.asarray(mask)]

    close(outputs(x), transductive.apply(params, x[mask], None))
    close(outputs(x.at[2].set(1e3)), outputs(x))
    sensitivity = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(outputs(x)))))(x))
    mask = np.asarray(mask)
    assert not sensitivity[~mask].any() and sensitivity[mask].any()


def test_who_sees_whom():
    x = normal(0, 5, 4, 4, 3, dtype="float32")
    other = x.at[0].add(1.0)
    for policy, dependent in [(transductive, True), (per_example, False), (none, False)]:
        params = policy.init(3)
        before, after = (policy.apply(params, rows, None)[1:] for rows in (x, other))
        assert bool((before != after).any()) == dependent, policy.name


@pytest.mark.parametrize("policy", [transductive, per_example])
@pytest.mark.parametrize("mask", [None, [True, True, True], [False, False, False]])
def test_two_derivatives_exist_at_zero_variance(policy, mask):
    x, params = jnp.full((3, 2, 2, 2), 0.3), policy.init(2)
    mask = None if mask is None else jnp.array(mask)

    def scalar(x):
        return jnp.sum(jnp.sin(policy.apply(params, x, mask)))

    second = jax.grad(lambda x: jnp.sum(jnp.square(jax.grad(scalar)(x))))
    for derivative in jax.jit(lambda x: (scalar(x), jax.grad(scalar)(x), second(x)))(x):
        assert np.isfinite(derivative).all()


def test_variance_survives_a_large_mean():
    """One pass in float32 would give 0, or a negative variance, here."""
    x = 4096 + normal(0, 64, 2, dtype="float32")
    y = transductive.apply(transductive.init(2), x, None)
    np.testing.assert_allclose(np.std(y, axis=0), 1, atol=2e-3)


def test_narrow_types_keep_their_dtype_but_not_their_statistics():
    x = normal(0, 512, 3, dtype="float32") + 8
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), transductive.init(3))
    narrow = x.astype(jnp.bfloat16)
    y = transductive.apply(params, narrow, None)
    assert y.dtype == jnp.bfloat16
    wide = transductive.apply(transductive.init(3), narrow.astype(jnp.float32), None)
    np.testing.assert_allclose(y.astype(jnp.float32), wide, atol=0.02)


# Masks


def test_masked_mean_is_the_mean_of_the_rows_that_count(x64):
    values, mask = normal(0, 5, 3, 2), jnp.array([True, False, True, True, False])
    close(masked_mean(values, mask), np.asarray(values)[np.asarray(mask)].mean())
    close(masked_mean(values, mask, (0, 1)), np.asarray(values)[np.asarray(mask)].mean((0, 1)))
    close(masked_mean(values, jnp.ones(5, bool)), masked_mean(values))
    assert masked_mean(values, jnp.zeros(5, bool)) == 0
    assert not jax.grad(masked_mean)(values, jnp.zeros(5, bool)).any()


@pytest.mark.parametrize(
    "mask", [jnp.ones(4, bool), jnp.ones((5, 1), bool), jnp.ones(5), [True] * 5]
)
@pytest.mark.usefixtures("as_users_see_it")
def test_masks_must_hold_one_boolean_per_row(mask):
    with pytest.raises(StructureError, match="mask does not fit"):
        masked_mean(jnp.ones((5, 2)), mask)
