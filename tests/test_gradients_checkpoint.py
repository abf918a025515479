"""What an unrolled loop keeps: memory and work change, the gradient does not."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from quadratic import KEY, objective, quadratic_meta

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
