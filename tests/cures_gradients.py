"""The cures of meta-gradients."""

from sites import Case

MINIMISE = "learn = Minimise(optimistix.BFGS(1e-3, 1e-3))"
STOPPED = """
init = lambda meta, support, key: {"w": jnp.zeros(2)}
reads = lambda params, meta, batch, key: loss(params, meta, batch, key) + jnp.sum(
    meta["w"] * params["w"]
)
detached = Problem(init, reads, loss)
"""
CLOSED_OVER = """
def through(shift, gradient, learn=adaptation):
    moved = Problem(init, lambda p, m, b, k: loss(p, m, b, k) + shift * jnp.sum(p["w"] ** 2), loss)
    return meta_objective(moved, learn, gradient)(meta, episode, key)[0]

def of_meta(gradient, learn=adaptation):
    shifted = lambda p, m, b, k: loss(p, m, b, k) + m["shift"] * jnp.sum(p["w"] ** 2)
    with_shift = Problem(init, shifted, loss)
    objective = meta_objective(with_shift, learn, gradient)
    whole = meta | {"shift": jnp.array(0.1)}
    return jax.grad(lambda meta: objective(meta, episode, key)[0])(whole)
"""
LOOPING = """
def halved(loss, bound):
    return lambda params, meta, batch, key: bound(
        lambda value: value / 2, loss(params, meta, batch, key)
    )

of_while = lambda step, value: jax.lax.while_loop(lambda value: value > 1, step, value)
of_scan = lambda step, value: jax.lax.scan(lambda v, _: (step(v), None), value, None, 3)[0]
"""

CASES = [
    Case(
        "gradients/base.py: step_weights must give",
        "trace(meta_value_and_grad(Problem(init, loss, loss, step_weights=lambda steps: "
        "jnp.ones(steps)), adaptation))",
        ("step_weights=lambda steps: jnp.full(steps + 1, 1 / (steps + 1))",),
    ),
    Case(
        "gradients/forward_mode.py: the basis does not fit",
        "trace(meta_value_and_grad(problem, adaptation, ForwardMode(Basis(meta))))",
        ("Basis(jax.tree.map(lambda *v: jnp.stack(v), *directions))",),
        given="directions = [meta, meta]",
    ),
    Case(
        "gradients/hold_constant.py: where must say",
        "trace(meta_value_and_grad(deep, adaptation, FirstOrder(where=lambda t, params: 0.5)))",
        (
            "FirstOrder(where=lambda t, params: t < 3)",
            ", or FirstOrder(where=lambda t, params: {'body': True, 'head': False})",
        ),
        given="of = lambda params: {'w': params['body'] + params['head']}\n"
        "judged = lambda p, m, b, k: loss(of(p), m, b, k)\n"
        "start = lambda meta, support, key: {'body': meta['w'], 'head': meta['w']}\n"
        "deep = Problem(start, judged, judged)",
    ),
    Case(
        "gradients/implicit.py: CG needs",
        "trace(meta_value_and_grad(problem, adaptation, "
        "Implicit(lineax.CG(1e-6, 1e-6), condition=step)))",
        (
            "Implicit(lineax.GMRES(rtol=1e-6, atol=1e-6), condition=...)",
            ", or Implicit(lineax.Normal(lineax.CG(rtol=1e-6, atol=1e-6)), condition=...)",
        ),
        given="step = fixed_point(lambda params, meta, batch, key: "
        "{'w': (params['w'] + meta['w']) / 2})",
    ),
    Case(
        "gradients/implicit.py: the inner optimum does not depend",
        "trace(meta_value_and_grad(problem, adaptation, Implicit()))",
        (
            (
                "Implicit() after gradients.proximal(problem, strength), which pulls the "
                "parameters to where they start (iMAML)",
                "trace(meta_value_and_grad(gradients.proximal(problem, 1.0), adaptation, "
                "Implicit()))",
            ),
            ("; or Unroll()", "trace(meta_value_and_grad(problem, adaptation, Unroll()))"),
        ),
    ),
    Case(
        "gradients/implicit.py: step_weights ask",
        "meta_objective(Problem(init, loss, loss, weights), adaptation, Implicit())",
        (
            (
                "Unroll(), or a Problem without step_weights",
                "meta_objective(Problem(init, loss, loss, weights), adaptation, Unroll())\n"
                "meta_objective(Problem(init, loss, loss), adaptation, Implicit())",
            ),
        ),
        given="weights = lambda steps: jnp.ones(steps + 1)",
    ),
    Case(
        "gradients/implicit.py: A procedure need not end",
        "meta_objective(problem, procedure, Implicit())",
        (
            ("Unroll(), which is exact", "meta_objective(problem, procedure, Unroll())"),
            (
                ", or Implicit(condition=...) with the condition that it solves",
                "meta_objective(problem, procedure, Implicit(condition=condition))",
            ),
        ),
        given="procedure = Procedure(lambda meta, support, key: {'w': meta['w']})\n"
        "condition = lambda params, meta, batch, key: {'w': params['w'] - meta['w']}",
    ),
    Case(
        "gradients/unroll.py: The path of a solver",
        "meta_objective(problem, learn, Unroll())",
        (
            (
                "Implicit(), which differentiates the solution",
                "meta_objective(problem, learn, Implicit())",
            ),
        ),
        given=MINIMISE,
    ),
    Case(
        "gradients/reptile.py: A procedure has no",
        "meta_objective(problem, procedure, Reptile())",
        (("Unroll()", "meta_objective(problem, procedure, Unroll())"),),
        given="procedure = Procedure(lambda meta, support, key: {'w': meta['w']})",
    ),
    Case(
        "missing.py: …",
        "trace(meta_value_and_grad(Problem(init, loss, halved(loss, of_while)), adaptation))",
        (
            (
                "ForwardMode()",
                "trace(meta_value_and_grad(Problem(init, loss, halved(loss, of_while)), "
                "adaptation, ForwardMode()))",
            ),
            (
                ", or jax.lax.scan in place of jax.lax.while_loop",
                "trace(meta_value_and_grad(Problem(init, halved(loss, of_scan), loss), "
                "adaptation))",
            ),
            (
                ", GradientDescent(optax.sgd(0.01), steps=5) in place of a line search",
                "trace(meta_value_and_grad(problem, GradientDescent(optax.sgd(0.01), steps=5)))",
            ),
            (", or adjoint=diffrax.DirectAdjoint()", "'docs/ecosystem.md does it'"),
        ),
        given=LOOPING,
        full=True,
    ),
    Case(
        "missing.py: …",
        "trace(meta_value_and_grad(custom, adaptation, Unroll(MixedMode())))",
        (
            ("Unroll()", "trace(meta_value_and_grad(custom, adaptation, Unroll()))"),
            (
                ", or jax.custom_jvp in place of jax.custom_vjp",
                "same = jax.custom_jvp(lambda x: x)\nsame.defjvp(lambda x, v: (*x, *v))\n"
                "by_jvp = Problem(init, lambda *a: same(loss(*a)), loss)\n"
                "trace(meta_value_and_grad(by_jvp, adaptation, Unroll(MixedMode())))",
            ),
            (", or adjoint=diffrax.DirectAdjoint()", "'docs/ecosystem.md does it'"),
        ),
        given="same = jax.custom_vjp(lambda x: x)\n"
        "same.defvjp(lambda x: (x, None), lambda _, g: (g,))\n"
        "once = jax.custom_vjp(lambda x: x**2)\n"
        "once.defvjp(lambda x: (x**2, x), lambda x, g: (2 * g * same(x),))\n"
        "custom = Problem(init, lambda *a: once(loss(*a)), loss)",
    ),
    Case(
        "missing.py: …",
        "trace(meta_value_and_grad(problem, called, FirstOrder()))",
        (
            (
                "EvolutionStrategies(64, 0.01) (unbiased)",
                "trace(meta_value_and_grad(problem, called, EvolutionStrategies(64, 0.01)))",
            ),
            (
                ", or the function in jax.numpy",
                "trace(meta_value_and_grad(problem, procedure(jnp.sin)))",
            ),
            (
                ", or under jax.custom_jvp with its derivative",
                "sine = jax.custom_jvp(on_host)\n"
                "sine.defjvp(lambda x, v: (sine(*x), jnp.cos(*x) * v[0]))\n"
                "trace(meta_value_and_grad(problem, procedure(sine)))",
            ),
        ),
        given="on_host = lambda x: jax.pure_callback(numpy.sin, x, x, "
        "vmap_method='sequential')\n"
        "procedure = lambda f: Procedure(lambda meta, s, k: {'w': f(meta['w'])})\n"
        "called = procedure(on_host)",
        full=True,
    ),
    Case(
        "gradients/reach.py: the meta-gradient is identically zero",
        "trace(meta_value_and_grad(detached, adaptation, FirstOrder()))",
        (
            (
                "Unroll() in place of FirstOrder()",
                "trace(meta_value_and_grad(detached, adaptation, Unroll()))",
            ),
            (
                ", or an init that returns a part of meta",
                "trace(meta_value_and_grad(problem, adaptation, FirstOrder()))",
            ),
        ),
        given=STOPPED,
    ),
    Case(
        "gradients/reptile.py: Reptile() needs",
        "trace(meta_value_and_grad(problem, another_start, Reptile()))",
        (("Unroll()", "trace(meta_value_and_grad(problem, another_start, Unroll()))"),),
        given="class Other(GradientDescent):\n"
        "    def params(self, state):\n"
        "        return {'w': state.params['w'], 'more': state.params['w']}\n"
        "another_start = Other(optax.sgd(0.1), 2)",
    ),
    Case(
        "gradients/reptile.py: Reptile() learns",
        "trace(meta_value_and_grad(detached, adaptation, Reptile()))",
        (("Unroll()", "trace(meta_value_and_grad(detached, adaptation, Unroll()))"),),
        given=STOPPED,
    ),
    Case(
        "gradients/surrogate.py: … gives a derivative in meta alone",
        "jax.grad(through)(0.1, FirstOrder())",
        (
            ("Unroll()", "jax.grad(through)(0.1, Unroll())"),
            (", or what is to be differentiated as a part of meta", "of_meta(FirstOrder())"),
        ),
        given=CLOSED_OVER,
        full=True,
    ),
    Case(
        "gradients/surrogate.py: the gradient of",
        "second(Reptile())",
        (("Unroll()", "second(Unroll())"),),
        given="def second(gradient):\n"
        "    first = jax.grad(lambda meta: meta_objective(problem, adaptation, gradient)"
        "(meta, episode, key)[0])\n"
        "    jax.jacrev(first)(meta)",
    ),
    Case(
        "gradients/linear_solve.py: the linear solve",
        "grads(flat, Implicit())",
        (
            ("proximal(problem, strength)", "grads(proximal(flat, 1.0), Implicit())"),
            (
                " or Implicit(damping=0.1) for a better-conditioned matrix",
                "grads(flat, Implicit(damping=0.1))",
            ),
            (
                ", Implicit(lineax.GMRES(rtol=1e-6, atol=1e-6)) for an indefinite one",
                "grads(saddle, Implicit(lineax.GMRES(rtol=1e-6, atol=1e-6)))",
            ),
            (
                ", or Implicit(throw=False) and watch aux.diagnostics['solve_residual']",
                "meta_objective(flat, adaptation, Implicit(throw=False))(meta, episode, key)[1]"
                ".diagnostics['solve_residual']",
            ),
        ),
        given="def grads(problem, gradient):\n"
        "    return jax.grad(lambda meta: meta_objective(problem, adaptation, gradient)"
        "(meta, episode, key)[0])(meta)\n"
        "flat = Problem(init, lambda p, m, b, k: jnp.sum(p['w'] * m['w']), loss)\n"
        "signs = jnp.array([1.0, -1.0])\n"
        "saddle = Problem(init, lambda p, m, b, k: jnp.sum((p['w'] - m['w']) ** 2 * signs), loss)",
        full=True,
    ),
]
