"""Every inner gradient in every loop: held to the oracle, its derivatives right or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic import (
    KEY,
    assert_close,
    descent_reference,
    episode,
    objective,
    quadratic_meta,
)
from quick import without
from variants import CROSS, sgd

import innerloop as il

pytestmark = pytest.mark.usefixtures("x64")

by_inner_gradient = pytest.mark.parametrize("inner", without({"held-2", "bound-mixed"}, CROSS))
quickly = {"compiler_options": {"xla_backend_optimization_level": 1}}


@by_inner_gradient
def test_the_gradient_is_that_of_the_oracle(inner):
    """One program for all loops, each held to what its own parts drop."""
    meta, task = quadratic_meta(), episode()
    update = sgd(lambda meta: np.exp(meta["rate"]))
    reference = descent_reference(update, 4)(meta, task, KEY)
    numpy_meta = {name: np.array(leaf) for name, leaf in meta.items()}
    values = [objective(setting.gradient) for setting in CROSS[inner]]
    found = jax.jit(lambda meta: [jax.grad(value)(meta) for value in values], **quickly)(meta)
    for setting, gradient in zip(CROSS[inner], found, strict=True):
        assert_close(gradient, setting.predict(reference, numpy_meta), atol=1e-10)


# A problem so small that its derivatives are cheap: two parameters, three meta-parameters.

META = {"start": np.array([0.6, -0.4]), "curve": np.array(0.3)}
LEARN = il.GradientDescent(optax.sgd(0.2), 4)
TASK = il.Episode(np.array([1.0, 0.5]), np.array([0.2, 0.8]))


def inner_loss(params, meta, batch, scale=1.0):
    return scale * jnp.sum(meta["curve"] * params**4 + (params - batch) ** 2)


def small(gradient, scale=1.0):
    """The meta-objective, with a value that the inner loss closes over."""
    problem = il.Problem(
        init=lambda meta, support, key: meta["start"],
        inner_loss=lambda params, meta, batch, key: inner_loss(params, meta, batch, scale),
        outer_loss=lambda params, meta, batch, key: jnp.sum(jnp.cos(params - batch)),
    )
    f = il.meta_objective(problem, LEARN, gradient)
    return lambda meta, task=TASK: f(meta, task, KEY)[0]


def plain(meta, task=TASK, scale=1.0):
    """The same without the library."""
    params = meta["start"]
    for _ in range(4):
        params -= 0.2 * jax.grad(inner_loss)(params, meta, task.support, scale)
    return jnp.sum(jnp.cos(params - task.query))


REFUSED = r"not itself differentiable.*Unroll|forward mode"
"""Ours, or JAX's for forward mode over mixed mode in `Binomial`, which comes before."""


def slope_of_the_slope(f):
    """Reverse mode over reverse mode."""
    return jax.grad(lambda meta: sum(jnp.vdot(a, a) for a in jax.tree.leaves(jax.grad(f)(meta))))


def gradients(inner, keep):
    settings = [setting.gradient for setting in CROSS[inner]]
    return [gradient for gradient in settings if keep(gradient.fidelity(LEARN))]


@by_inner_gradient
def test_second_derivatives_are_exact_or_refused(inner):
    exact = gradients(inner, lambda fidelity: fidelity.derivatives.second)
    assert len(exact) == {"exact": 5, "mixed": 4}.get(inner, 0)
    hessians = lambda meta: [jax.hessian(small(gradient))(meta) for gradient in exact]
    expected = jax.jit(jax.hessian(plain), **quickly)(META)
    for found in jax.jit(hessians, **quickly)(META):
        assert_close(found, expected)
    for gradient in gradients(inner, lambda fidelity: not fidelity.derivatives.second):
        f = small(gradient)
        for second in (jax.jit(jax.hessian(f)), slope_of_the_slope(f)):
            with pytest.raises((il.errors.GradientError, TypeError), match=REFUSED):
                jax.eval_shape(second, META)


@pytest.mark.parametrize("inner", ["exact", "mixed"])
def test_reverse_mode_over_reverse_mode_is_exact_but_for_binomial(inner):
    exact = gradients(inner, lambda fidelity: fidelity.derivatives.second)
    online = [gradient for gradient in exact if isinstance(gradient.loop, il.Binomial)]
    twice = [gradient for gradient in exact if gradient not in online]
    slopes = lambda meta: [slope_of_the_slope(small(gradient))(meta) for gradient in twice]
    expected = jax.jit(slope_of_the_slope(plain), **quickly)(META)
    for found in jax.jit(slopes, **quickly)(META):
        assert_close(found, expected)
    for gradient in online:
        with pytest.raises(Exception, match=r"differentiat|transpos|jvp|JVP"):
            jax.jit(slope_of_the_slope(small(gradient)))(META)


@by_inner_gradient
def test_forward_mode_is_the_gradient_along_a_direction_or_raises(inner):
    along = jax.tree.map(lambda leaf: np.cos(1 + leaf), META)
    taken = gradients(inner, lambda fidelity: fidelity.derivatives.forward)
    both = lambda f, meta: (jax.grad(f)(meta), jax.jvp(f, (meta,), (along,))[1])
    found = jax.jit(lambda meta: [both(small(g), meta) for g in taken], **quickly)(META)
    assert bool(found) == (inner != "mixed")
    for gradient, slope in found:
        dots = jax.tree.map(jnp.vdot, gradient, along)
        assert_close(slope, jax.tree.reduce(jnp.add, dots))
    for gradient in gradients(inner, lambda fidelity: not fidelity.derivatives.forward):
        if isinstance(gradient.loop, il.gradients.Last):
            continue  # what reaches a loop or an inner gradient that lacks it depends on k
        with pytest.raises(TypeError, match=r"forward.mode|jvp"):
            jax.jit(lambda meta, f=small(gradient): jax.jvp(f, (meta,), (along,)))(META)


@by_inner_gradient
@pytest.mark.parametrize("part", ["closed over", "support", "query"])
def test_a_derivative_in_anything_but_meta_is_exact_or_refused(inner, part):
    def slope(f):
        if part == "closed over":
            return jax.grad(lambda scale: f(META, TASK, scale))(1.0)
        of = lambda half: f(
            META, il.Episode(**({"support": TASK.support, "query": TASK.query} | {part: half})), 1.0
        )
        return jax.grad(of)(getattr(TASK, part))

    of = lambda gradient: lambda meta, task, scale: small(gradient, scale)(meta, task)
    exact = gradients(inner, lambda fidelity: fidelity.kind == "exact")
    found = jax.jit(lambda: [slope(of(gradient)) for gradient in exact], **quickly)()
    for each in found:
        assert_close(each, slope(plain))
    for gradient in gradients(inner, lambda fidelity: fidelity.kind != "exact"):
        with pytest.raises(il.errors.GradientError, match="derivative in meta alone"):
            jax.eval_shape(lambda gradient=gradient: slope(of(gradient)))
