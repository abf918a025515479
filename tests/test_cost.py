"""The FLOP count: against hand counts, against the compiler, against what was really run."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from innerloop.programs.cost import cost, flops


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


SQUARE = array(8, 8)
PRODUCT = 2 * 8**3


def by_the_compiler(function, *args):
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    return analysis["flops"]


# --- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (jnp.matmul, (array(3, 4), array(4, 5)), 2 * 3 * 4 * 5),
        (jnp.matmul, (array(7, 3, 4), array(7, 4, 5)), 7 * 2 * 3 * 4 * 5),
        (lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (array(2, 3, 4), array(2, 5, 4)), 240),
        (jnp.sin, (array(3, 4),), 12),
        (lambda x: jnp.exp(x) + 1.0, (array(5),), 10),
        (jnp.sum, (array(3, 4),), 12),
        (jnp.cumsum, (array(9),), 9),
        (lambda x: x.T.reshape(-1)[1:5], (array(3, 4),), 0),
        (lambda x: x.at[:2].add(1.0), (array(5),), 2),
    ],
    ids=["product", "batched", "einsum", "sine", "two", "sum", "cumsum", "moved", "scatter"],
)
def test_single_operations(function, args, expected):
    assert flops(function, *args) == expected


def test_a_convolution():
    def convolve(images, kernel):
        return jax.lax.conv(images, kernel, (1, 1), "VALID")

    assert flops(convolve, array(2, 3, 8, 8), array(4, 3, 3, 3)) == 2 * 2 * 4 * 6 * 6 * 3 * 9


@pytest.mark.parametrize(
    ("decompose", "shape", "expected"),
    [
        (jax.lax.linalg.cholesky, (6, 6), 6**3 / 3),
        (jax.lax.linalg.lu, (6, 6), 2 * 6**3 / 3),
        (lambda a: jax.lax.linalg.triangular_solve(a, a[:, :2], left_side=True), (6, 6), 6 * 12),
        (jax.lax.linalg.eigh, (3, 6, 6), 3 * 9 * 6**3),
        (jnp.fft.fft, (4, 8), 5 * 32 * 3),
    ],
    ids=["cholesky", "lu", "triangular", "eigh", "fft"],
)
def test_decompositions(decompose, shape, expected):
    dtype = jnp.complex64 if decompose is jnp.fft.fft else jnp.float32
    # Some make their argument symmetric first.
    few = 5 * math.prod(shape)
    assert expected <= flops(decompose, array(*shape, dtype=dtype)) <= expected + few


def test_a_scan_counts_its_body_times_its_length():
    def scanned(x, turns=5):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=turns)[0]

    def nested(x):
        return jax.lax.scan(lambda c, _: (scanned(c), None), x, None, length=3)[0]

    assert flops(scanned, SQUARE) == 5 * PRODUCT
    assert flops(nested, SQUARE) == 15 * PRODUCT
    assert not cost(nested, SQUARE).lower_bound


def test_a_fori_loop_counts_its_turns():
    def loop(x):
        return jax.lax.fori_loop(2, 9, lambda i, x: x @ x, x)

    assert flops(loop, SQUARE) == pytest.approx(7 * PRODUCT, abs=7 * 2)


@pytest.mark.parametrize(
    "loop",
    [
        lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x @ x, x),
        lambda x: jax.lax.fori_loop(0, jnp.argmax(x), lambda i, x: x @ x, x),
    ],
    ids=["condition", "traced bound"],
)
def test_a_loop_that_cannot_be_counted_counts_once_and_says_so(loop):
    counted = cost(loop, SQUARE)
    assert counted.lower_bound
    assert PRODUCT <= counted.flops < PRODUCT + 200


def test_a_branch_counts_its_dearest_side():
    def branch(p, x):
        return jax.lax.cond(p, lambda x: x @ x, lambda x: x, x)

    assert flops(branch, array(dtype=jnp.bool_), SQUARE) == pytest.approx(PRODUCT, abs=2)


def test_calls_are_looked_into():
    inner = jax.jit(lambda x: jax.nn.relu(x) @ x)
    assert flops(lambda x: jax.checkpoint(inner)(x), SQUARE) == PRODUCT + 64


def test_what_a_checkpoint_computes_again_counts_again():
    def loss(x):
        return jnp.sum(jnp.sin(x @ x) @ x)

    value_and_grad = flops(jax.value_and_grad(loss), SQUARE)
    again = flops(jax.value_and_grad(jax.checkpoint(loss)), SQUARE)
    # The first product and the sine; the second product's result is not needed going backward.
    assert again - value_and_grad == PRODUCT + 64
    assert flops(jax.grad(jax.checkpoint(loss)), SQUARE) == flops(jax.grad(loss), SQUARE)


def test_vmap_counts_every_row():
    assert flops(jax.vmap(jnp.matmul), array(3, 8, 8), array(3, 8, 8)) == 3 * PRODUCT


def test_what_is_not_needed_or_known_already_is_free():
    def wasteful(x):
        first, second, _ = x @ x, x @ x, jnp.exp(x) @ x
        return first + second

    def loop(x):
        def body(carry, _):
            kept, lost = carry
            return (kept @ kept, lost @ lost @ lost), None

        return jax.lax.scan(body, (x, x), None, length=4)[0][0]

    assert flops(wasteful, SQUARE) == PRODUCT + 64
    assert flops(loop, SQUARE) == 4 * PRODUCT


def test_foreign_functions_make_it_a_lower_bound():
    def foreign(x):
        return jax.pure_callback(np.sin, x, x) @ x

    assert (flops(foreign, SQUARE), cost(foreign, SQUARE).lower_bound) == (PRODUCT, True)


def test_random_keys_are_taken():
    assert flops(lambda key: jax.random.normal(key, (3,)), jax.random.key(0)) >= 3


def test_nothing_is_run():
    def touched(_):
        raise AssertionError("it ran")

    def loud(x):
        jax.debug.callback(touched, x)
        return x @ x

    assert flops(loud, SQUARE) == PRODUCT


# --- against the compiler -----------------------------------------------------------------------


def _network(params, x):
    for weights in params:
        x = jnp.tanh(x @ weights)
    return jnp.mean(x**2)


NETWORK = ([array(32, 64), array(64, 64), array(64, 16)], array(50, 32))


def _update(params, x):
    return [p - 0.1 * g for p, g in zip(params, jax.grad(_network)(params, x), strict=True)]


@pytest.mark.parametrize(
    "function",
    [
        _network,
        jax.grad(_network),
        jax.value_and_grad(lambda params, x: _network(_update(params, x), x)),
        jax.vmap(jax.grad(_network), (None, 0)),
        lambda params, x: jax.jvp(jax.grad(_network), (params, x), (params, x)),
    ],
    ids=["forward", "gradient", "gradient of gradient", "vmap", "forward over reverse"],
)
def test_without_loops_the_compiler_counts_the_same(function, request):
    params, x = NETWORK
    if request.node.callspec.id == "vmap":
        x = array(5, *x.shape)
    assert flops(function, params, x) == pytest.approx(
        by_the_compiler(function, params, x), rel=0.05
    )
