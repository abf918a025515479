"""What an unrolled loop keeps: memory and work change, the gradient does not."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest
from quadratic import KEY, assert_close, objective, quadratic_meta
from variants import LOOPS

import innerloop as il

pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def temporary(gradient):
    """Memory of the values kept over 64 steps; compiled, not run."""
    model = il.models.mlp([8, 32, 32, 8])
    problem, learn, _, init, *_ = il.recipes.maml(model, il.models.mean_squared_error, 0.01, 64)
    meta = init(jax.random.key(0))
    rows = jnp.zeros((64, 8))
    data = il.Episode(il.Examples(rows, rows), il.Examples(rows, rows))
    f = jax.jit(jax.grad(il.meta_objective(problem, learn, gradient), has_aux=True))
    return f.lower(meta, data, KEY).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.xdist_group("temporary memory")
@pytest.mark.parametrize(
    "gradient",
    [
        il.Unroll(loop=il.Segments(1)),
        il.Unroll(il.MixedMode(), il.Segments(4)),
        il.Unroll(loop=il.Segments()),
        il.Unroll(il.MixedMode(), il.gradients.Last(60, of=il.Segments(1))),
    ],
    ids=il.gradients.gradient_name,
)
def test_checkpointing_keeps_fewer_values(gradient):
    assert temporary(gradient) < 0.5 * temporary(il.Unroll())


@pytest.mark.xdist_group("temporary memory")
def test_a_fixed_number_of_states_takes_less_than_every_state():
    assert temporary(il.Unroll(loop=il.Binomial(3))) < temporary(il.Unroll(loop=il.Segments(1)))


def test_kept_inner_gradients_are_not_computed_again():
    """Of about five gradients' work per step, one is saved; the compiler counts."""
    model = il.models.mlp([8, 64, 64, 8])
    problem, _, _, init, *_ = il.recipes.maml(model, il.models.mean_squared_error, 0.01, 6)
    learn = il.GradientDescent(optax.adam(0.01, eps_root=1e-8), 6)
    rows = jnp.zeros((64, 8))
    data = il.Episode(il.Examples(rows, rows), il.Examples(rows, rows))

    def flops(keep):
        gradient = il.Unroll(il.MixedMode(), il.Segments(1, keep_inner_gradients=keep))
        f = jax.jit(jax.grad(il.meta_objective(problem, learn, gradient), has_aux=True))
        return f.lower(init(KEY), data, KEY).compile().cost_analysis()["flops"]

    assert flops(True) < 0.93 * flops(False)


@pytest.mark.parametrize("offload", [True, False])
def test_offloaded_values_go_to_the_host(offload):
    gradient = il.Unroll(loop=il.Segments(1, offload=offload))
    program = jax.make_jaxpr(jax.grad(objective(gradient)))(quadratic_meta())
    assert ("MemorySpace.Host" in str(program)) == offload


def test_offloaded_values_have_second_derivatives_in_forward_over_reverse(x64):
    """Reverse over reverse is an error of JAX, which adds a cotangent on the host to another."""
    hessian = lambda loop: jax.jit(jax.hessian(objective(il.Unroll(loop=loop))))(quadratic_meta())
    assert_close(hessian(il.Segments(1, offload=True)), hessian(il.Segments(1)))


def divided_by_lineax(vector, diagonal):
    return lx.linear_solve(lx.DiagonalLinearOperator(diagonal), vector, lx.Diagonal()).value


def divided_by_optimistix(vector, diagonal):
    solver = optx.Newton(rtol=1e-10, atol=1e-10)
    residual = lambda x, given: given[1] * x - given[0]
    return optx.root_find(residual, solver, jnp.zeros(2), (vector, diagonal)).value


def descended(divide):
    """A problem whose inner loss divides, and three steps on it by hand."""

    def inner(params, batch):
        return jnp.sum(divide(params + batch, 1 + params**2))

    def outer(params, batch):
        return jnp.sum((params - batch) ** 2)

    def by_hand(meta, support, query, last):
        """The steps before the last ones count as the identity."""
        params = meta
        for t in range(3):
            params = meta + jax.lax.stop_gradient(params - meta) if t == 3 - last else params
            params = params - 0.1 * jax.grad(inner)(params, support)
        params = meta + jax.lax.stop_gradient(params - meta) if last == 0 else params
        return outer(params, query)

    on_task = lambda loss: lambda params, meta, batch, key: loss(params, batch)
    return il.Problem(lambda meta, support, key: meta, on_task(inner), on_task(outer)), by_hand


@pytest.mark.parametrize(
    ("divide", "loops"),
    [
        (divided_by_lineax, ("kept", "offload")),
        pytest.param(divided_by_lineax, (*LOOPS,), marks=pytest.mark.full),
        pytest.param(divided_by_optimistix, (*LOOPS,), marks=pytest.mark.full),
    ],
    ids=["lineax", "lineax in all loops", "optimistix in all loops"],
)
def test_an_inner_loss_may_solve_in_every_loop(divide, loops):
    """The primitives of Equinox, which both libraries are built on, have a parameter `prim`."""
    (problem, _), (_, by_hand) = descended(divide), descended(jnp.divide)
    meta, learn = jnp.array([0.3, -0.4]), il.GradientDescent(optax.sgd(0.1), 3)
    tasks = np.random.default_rng(0).normal(size=(2, 2, 2))
    slots = [LOOPS[name] for name in loops]
    gradients = [il.Unroll(loop=slot.value) for slot in slots]
    batched = [il.meta_value_and_grad(problem, learn, gradient) for gradient in gradients]
    found = jax.jit(lambda meta: [f(meta, il.Episode(*tasks), KEY)[1] for f in batched])(meta)
    expected = jax.jit(jax.grad(by_hand), static_argnums=3)
    for slot, gradient in zip(slots, found, strict=True):
        last = min((slot.drops or {}).get("last", 3), 3)
        of_tasks = [expected(meta, *task, last) for task in tasks.swapaxes(0, 1)]
        assert_close(gradient, sum(of_tasks) / 2)
