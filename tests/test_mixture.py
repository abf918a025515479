"""A mixture of kinds of tasks is the weighted sum of its kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.tasks import IndependentTasks, SinusoidTasks
from innerloop.tasks._mixture import Kind, mixture
from innerloop.training import faults


def sine_problem():
    def loss(params, meta, batch, key):
        x = batch.inputs[:, 0]
        features = jnp.stack([jnp.sin(x), jnp.cos(x), jnp.ones_like(x)], 1)
        return jnp.mean((features @ params - batch.targets[:, 0]) ** 2)

    return il.Problem(lambda meta, support, key: meta["shared"], loss, loss)


def line_problem():
    def loss(params, meta, batch, key):
        return jnp.mean((batch["x"] @ params - batch["y"]) ** 2), {"key": jax.random.key_data(key)}

    return il.Problem(lambda meta, support, key: meta["shared"] * meta["scale"], loss, loss)


def line(key):
    x_key, slope_key = jax.random.split(key)
    x = jax.random.normal(x_key, (6, 3))
    y = x @ jax.random.normal(slope_key, (3,))
    return il.Episode({"x": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]})


SINES, LINES = SinusoidTasks(5, 7), IndependentTasks(line)
LEARN_SINE = il.GradientDescent(optax.sgd(0.05), steps=2)
LEARN_LINE = il.GradientDescent(optax.sgd(0.05, momentum=0.9), steps=1)
META = {"shared": jnp.array([0.3, -0.2, 0.5]), "scale": jnp.array(1.5)}


def kinds(*weights):
    parts = [(sine_problem(), LEARN_SINE, SINES), (line_problem(), LEARN_LINE, LINES)]
    return [(*parts[i % 2], weight) for i, weight in enumerate(weights)]


@pytest.mark.parametrize(
    ("weights", "n", "counts"),
    [
        ((3.0, 1.0), 8, (6, 2)),
        ((1.0, 1.0), 8, (4, 4)),
        ((100.0, 1.0), 2, (1, 1)),
        ((100.0, 1.0), 20, (19, 1)),
        ((1.0,), 4, (4,)),
        ((2.0, 1.0, 1.0), 11, (5, 3, 3)),
    ],
)
def test_tasks_are_shared_out_by_weight(weights, n, counts):
    _, _, tasks = mixture(*kinds(*weights))
    shapes = jax.eval_shape(lambda key: tasks.sample(key, n), jax.random.key(0))
    assert tuple(jax.tree.leaves(part)[0].shape[0] for part in shapes) == counts
    assert sum(counts) == n


@pytest.mark.parametrize(
    ("gradient", "chunk"),
    [(None, None), (il.FirstOrder(), 2), ((il.Unroll(), il.FirstOrder()), None)],
    ids=["unroll", "first_order", "one_of_each_kind"],
)
def test_value_and_gradient_are_the_weighted_sum_of_the_parts(gradient, chunk):
    problem, adaptation, tasks = mixture(*kinds(3.0, 1.0))
    key = jax.random.key(1)
    episodes = tasks.sample(jax.random.key(2), 8)
    step = jax.jit(il.meta_value_and_grad(problem, adaptation, gradient, chunk=chunk))
    (loss, aux), grads = step(META, episodes, key)

    sine_key, line_key = jax.random.split(key, 2)
    of_sines, of_lines = gradient if isinstance(gradient, tuple) else (gradient, gradient)
    (sine_loss, sine_aux), sine_grads = jax.jit(
        il.meta_value_and_grad(sine_problem(), LEARN_SINE, of_sines)
    )(META, episodes[0], sine_key)
    (line_loss, line_aux), line_grads = jax.jit(
        il.meta_value_and_grad(line_problem(), LEARN_LINE, of_lines)
    )(META, episodes[1], line_key)

    np.testing.assert_allclose(loss, 0.75 * sine_loss + 0.25 * line_loss, rtol=1e-5)
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, sine_grads, line_grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected
    )
    assert isinstance(aux, tuple) and len(aux) == 2
    np.testing.assert_allclose(aux[0].info.loss, sine_aux.info.loss, rtol=1e-5)
    np.testing.assert_array_equal(aux[1].metrics["key"], line_aux.metrics["key"])
    # The sine tasks do not read the scale: zero in their part, and said so there alone.
    assert list(aux[0].diagnostics["unreached"]) == ["['scale']"]
    assert aux[1].diagnostics["unreached"] == {}
    assert grads["scale"] != 0


def test_a_mixture_of_one_kind_is_that_kind():
    problem, adaptation, tasks = mixture(kinds(5.0)[0][:3])
    assert problem.weights == (1.0,)
    key = jax.random.key(0)
    (episodes,) = tasks.sample(key, 3)
    (loss, _), grads = jax.jit(il.meta_value_and_grad(problem, adaptation))(META, (episodes,), key)
    (alone, _), alone_grads = jax.jit(il.meta_value_and_grad(sine_problem(), LEARN_SINE))(
        META, episodes, jax.random.split(key, 1)[0]
    )
    np.testing.assert_allclose(loss, alone, rtol=1e-6)
    np.testing.assert_allclose(grads["shared"], alone_grads["shared"], rtol=1e-5)


def test_samples_are_those_of_the_kinds():
    _, _, tasks = mixture(*(Kind(*kind) for kind in kinds(1.0, 1.0)))
    key = jax.random.key(3)
    parts = jax.random.split(key, 2)
    expected = SINES.sample(parts[0], 2), LINES.sample(parts[1], 2)
    jax.tree.map(np.testing.assert_array_equal, tasks.sample(key, 4), expected)


@pytest.mark.parametrize(
    "weights", [(), (0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (float("inf"), 1.0)]
)
def test_no_kinds_or_weights_that_are_not_positive_are_refused(weights):
    with pytest.raises(il.StructureError, match=r"positive weights.*Write: mixture"):
        mixture(*kinds(*weights))


def test_fewer_tasks_than_kinds_are_refused():
    _, _, tasks = mixture(*kinds(1.0, 1.0))
    with pytest.raises(il.StructureError, match=r"task of every kind.*Write: sample\(key, 2\)"):
        jax.eval_shape(lambda key: tasks.sample(key, 1), jax.random.key(0))


@pytest.mark.parametrize("which", ["adaptations", "gradients", "a list"])
def test_as_many_parts_as_kinds(which):
    problem, adaptation, _ = mixture(*kinds(1.0, 1.0))
    parts = {
        "adaptations": (adaptation[:1], None),
        "gradients": (adaptation, (il.Unroll(),) * 3),
        "a list": (adaptation, [il.Unroll(), il.Unroll()]),
    }[which]
    with pytest.raises(il.StructureError, match=r"parts for 2 kinds.*Write: "):
        problem.kinds(*parts)  # as meta_value_and_grad does, which is not typed for a list


@pytest.mark.parametrize(
    ("adaptation", "gradient"),
    [((LEARN_SINE,), None), (LEARN_SINE, (il.Unroll(), il.FirstOrder()))],
)
def test_a_single_problem_has_single_parts(adaptation, gradient):
    with pytest.raises(il.StructureError, match=r"a single problem has a single.*Write: .*mixture"):
        il.meta_value_and_grad(sine_problem(), adaptation, gradient)


@pytest.mark.filterwarnings(r"ignore:warning. nothing reads meta\['scale'\]")  # the sines do not
def test_training_with_a_meta_gradient_of_each_kind_and_in_each_phase():
    problem, adaptation, tasks = mixture(*kinds(1.0, 1.0))
    of_each = (il.Unroll(), il.FirstOrder())
    phases = (il.recipes.Phase(2, tuple(reversed(of_each))),)
    init = lambda key: META

    def trained(gradient, phases=()):
        recipe = il.recipes.Recipe(problem, adaptation, gradient, init, phases=phases)
        options = {"optimizer": optax.sgd(0.1), "batch": 4, "per_call": 2}
        return il.fit(recipe, tasks, steps=4, key=jax.random.key(0), check=True, **options).last

    alone, first, of_phases = trained(of_each), trained(il.FirstOrder()), trained(of_each, phases)
    assert not np.allclose(alone["shared"], first["shared"])
    assert not np.allclose(alone["shared"], of_phases["shared"])


def test_one_adaptation_may_be_of_all_kinds():
    """Of the gradient, of the evaluation, and of runs that go on."""
    problem, _, tasks = mixture(kinds(1.0)[0], (sine_problem(), LEARN_SINE, SinusoidTasks(3, 4)))
    both, key = (LEARN_SINE, LEARN_SINE), jax.random.key(0)
    episodes = tasks.sample(key, 4)

    def results(adaptation):
        losses, _ = il.meta_value_and_grad(problem, adaptation)(META, episodes, key)
        evaluated = il.evaluate(problem, adaptation, META, episodes, key).mean
        recipe = il.recipes.Recipe(
            problem,
            adaptation,
            il.estimators.TruncatedUnroll(window=1, horizon=2),
            lambda key: META,
        )
        options = {"optimizer": optax.sgd(0.1), "steps": 2, "batch": 4, "key": key}
        return losses[0], evaluated, il.fit(recipe, tasks, **options).last

    jax.tree.map(np.testing.assert_array_equal, results(LEARN_SINE), results(both))


def test_each_kind_is_checked_with_its_own_gradient(monkeypatch):
    checked, of_each = [], (il.Unroll(), il.FirstOrder())
    real = faults.diagnostics.check
    note = lambda *args, **options: checked.append(args[5]) or real(*args, **options)
    monkeypatch.setattr(faults.diagnostics, "check", note)
    problem, adaptation, tasks = mixture(*kinds(1.0)[:1], *kinds(1.0)[:1])
    recipe = il.recipes.Recipe(problem, adaptation, of_each, lambda key: {"shared": META["shared"]})
    faults.stop_at_faults(recipe, tasks, 2, jax.random.key(0))
    assert tuple(checked) == of_each
