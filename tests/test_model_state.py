"""Model state and frozen arrays: what no gradient moves, against loops by hand in float64."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

import innerloop as il
from innerloop.errors import StructureError
from innerloop.estimators.metrics import mean_state

KEY = jax.random.key(0)
RATE, STEPS = 0.1, 3


def normalised(x, mean, variance):
    return (x - mean[None]) / jnp.sqrt(variance[None] + 1e-5)


def init(key):
    first, second = jax.random.split(key)
    dtype = jnp.result_type(float)
    return {
        "weights": jax.random.normal(first, (3, 4), dtype),
        "head": jax.random.normal(second, (4, 1), dtype),
        "scales": None,
    }


FROZEN = {"weights": None, "head": None, "scales": jnp.array([1, 2, 3], jnp.int8)}


def hidden(params, x):
    return x * params["scales"].astype(x.dtype)[None] @ params["weights"]


def learn(given, x, key, mask):
    params, state = given.params, given.state
    h = hidden(params, x)
    mean, variance = h.mean(0), h.var(0)
    average = lambda old, new: 0.9 * old + 0.1 * new
    after = {
        "mean": average(state["mean"], mean),
        "variance": average(state["variance"], variance),
        "count": state["count"] + 1,
    }
    return jnp.tanh(normalised(h, mean, variance)) @ params["head"], after


def apply(given, x, key, mask):
    params, state = given.params, given.state
    h = normalised(hidden(params, x), state["mean"], state["variance"])
    return jnp.tanh(h) @ params["head"]


def state_before():
    dtype = jnp.result_type(float)
    return {
        "mean": jnp.zeros(4, dtype),
        "variance": jnp.ones(4, dtype),
        "count": jnp.int32(0),
    }


def recipe(**changed):
    model = il.models.Model(
        *(init, apply, "carried"), frozen=FROZEN, state=state_before(), learn=learn
    )
    made = il.recipes.maml(model, il.models.mean_squared_error, RATE, STEPS)
    return made._replace(problem=dataclasses.replace(made.problem, **changed))


def tasks(n=4, key=KEY):
    x = jax.random.normal(key, (2, n, 6, 3), jnp.result_type(float))
    y = jnp.sin(x.sum(-1, keepdims=True))
    return il.Episode(il.Examples(x[0], y[0]), il.Examples(x[1], y[1]))


def by_hand(meta, episode, state, through_state=False, hold=False):
    """The loss of one task and the state after it, written out."""
    whole = lambda params: params | {"scales": FROZEN["scales"]}
    params = {name: meta[name] for name in ("weights", "head")}

    def loss(params, state):
        support = episode.support
        outputs, after = learn(il.Stateful(whole(params), state), support.inputs, None, None)
        return jnp.mean((outputs - support.targets) ** 2), after

    for _ in range(STEPS):
        slope, after = jax.grad(loss, has_aux=True)(params, state)
        if hold:
            slope, after = jax.lax.stop_gradient((slope, after))
        state = after if through_state else jax.lax.stop_gradient(after)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, slope)
    outputs = apply(il.Stateful(whole(params), state), episode.query.inputs, None, None)
    return jnp.mean((outputs - episode.query.targets) ** 2), state


GRADIENTS = {
    "Unroll": il.Unroll(),
    "mixed mode in segments": il.Unroll(il.MixedMode(), il.Segments(1)),
    "binomial": il.Unroll(loop=il.Binomial(2)),
    "forward mode": il.ForwardMode(),
    "first order": il.FirstOrder(),
}


@pytest.mark.parametrize("through_state", [False, True])
@pytest.mark.parametrize("name", GRADIENTS)
def test_the_meta_gradient_is_that_of_a_loop_by_hand(name, through_state):
    with jax.enable_x64(True):
        made, gradient = recipe(through_state=through_state), GRADIENTS[name]
        meta, episodes = made.init_meta(KEY), tasks()
        hold = name == "first order"

        def objective(meta):
            of_task = lambda task: by_hand(meta, task, state_before(), through_state, hold)
            losses, states = jax.vmap(of_task)(episodes)
            return losses.mean(), states

        (value, states), expected = jax.value_and_grad(objective, has_aux=True)(meta)
        f = il.meta_value_and_grad(made.problem, made.adaptation, gradient)
        (loss, aux), grads = f(meta, episodes, KEY)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9), grads, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9), aux.state, states)
        np.testing.assert_allclose(loss, value, 1e-12)
        exact = through_state and not hold
        fidelity = gradient.fidelity(made.adaptation, made.problem)
        assert fidelity.kind == ("exact" if exact else "biased")
        assert ("model state is held constant" in fidelity.sentence) == (not exact)


def test_partly_held_inner_gradients_say_which_states_they_hold():
    made, gradient = recipe(through_state=True), il.FirstOrder(where=lambda t, params: t < 2)
    fidelity = gradient.fidelity(made.adaptation, made.problem)
    assert "state after a step at which all gradients are held is constant" in fidelity.sentence


def complex_state(through_state):
    """A complex state that begins at 1 and is divided by the parameter in each step."""

    def inner(given, meta, batch, key):
        turned = jax.lax.complex(jnp.zeros(()), 1 / given.params)
        return (given.params - 1) ** 2, {}, given.state * turned

    outer = lambda given, meta, batch, key: given.params**2 + jnp.abs(given.state)
    return il.Problem(
        lambda meta, support, key: meta,
        *(inner, outer),
        state=jnp.ones((), jnp.result_type(complex)),
        through_state=through_state,
    )


@pytest.mark.parametrize("through_state", [False, True])
def test_a_complex_state_is_held_or_differentiated_and_averaged(through_state):
    learning = il.GradientDescent(optax.sgd(0.1), 1)
    problem = complex_state(through_state)
    kind = il.Unroll().fidelity(learning, problem).kind
    assert kind == ("exact" if through_state else "biased")
    # From 2, a step goes to 1.8 with the derivative 0.8, and the state is i / 2.
    _, grads = il.meta_value_and_grad(problem, learning)(jnp.array(2.0), tasks(2), KEY)
    np.testing.assert_allclose(grads, 2 * 1.8 * 0.8 - 0.25 * through_state, rtol=1e-5)
    whole = il.WholeTasks(problem, learning, il.Unroll(), Same(tasks(2)), 2)
    _, state = whole.step(jnp.array(2.0), problem.state, None, KEY, 0)
    np.testing.assert_allclose(state, 0.5j)


def test_an_implicit_gradient_holds_the_state_where_the_loop_left_it():
    r"""$\theta^* = (\phi + s) / 2$ and $L = \|\theta - q\|^2 / 2 + \theta^\top s$ with s fixed."""

    def inner(given, meta, batch, key):
        theta, mean = given.params, given.state
        pull = jnp.sum((theta - meta) ** 2) + jnp.sum((theta - mean) ** 2)
        return pull / 2, {}, (mean + batch.mean(0)) / 2

    def outer(given, meta, batch, key):
        theta, mean = given.params, given.state
        return jnp.sum((theta - batch) ** 2) / 2 + theta @ mean

    with jax.enable_x64(True):
        meta, support, query = jnp.arange(3.0), jnp.ones((4, 3)), jnp.full(3, 2.0)
        problem = il.Problem(lambda m, support, key: m, inner, outer, state=jnp.zeros(3))
        learn = il.GradientDescent(optax.sgd(0.4), 80)
        f = jax.value_and_grad(il.meta_objective(problem, learn, il.Implicit()), has_aux=True)
        (_, aux), grads = f(meta, il.Episode(support, query), KEY)
        theta = (meta + 1) / 2
        np.testing.assert_allclose(aux.state, 1, 1e-9)
        np.testing.assert_allclose(grads, (theta - query + 1) / 2, 1e-7)
        assert il.Implicit().fidelity(learn, problem).kind == "biased"
        through = dataclasses.replace(problem, through_state=True)
        assert il.Implicit().fidelity(learn, through).kind == "biased"


class Same(eqx.Module):
    """Always the same batch of tasks, with weights."""

    episodes: il.Episode

    def sample(self, key, n):
        return self.episodes


def weighted_tasks():
    episodes = tasks()
    return dataclasses.replace(episodes, weight=jnp.array([1.0, 3.0, 0.0, 0.5]))


@pytest.mark.parametrize("chunk", [None, 1])
def test_fit_replaces_the_state_by_the_weighted_mean_over_tasks(chunk):
    made, episodes = recipe(), weighted_tasks()
    outcome = il.fit(
        made.estimator(Same(episodes), 4, chunk), made.init_meta, optimizer=optax.sgd(0.0),
        steps=2, key=KEY,
    )  # fmt: skip
    meta, state = outcome.meta, state_before()
    for _ in range(2):
        after = [
            by_hand(meta, jax.tree.map(lambda leaf, i=i: leaf[i], episodes), state)[1]
            for i in range(4)
        ]
        mean = lambda *leaves: np.average(np.stack(leaves), 0, episodes.weight)
        count = after[0]["count"]
        state = jax.tree.map(mean, *after) | {"count": count}
    assert outcome.learner is not None
    found = outcome.learner.problem.state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4), found, state)
    assert found["count"] == 2 * STEPS and found["count"].dtype == jnp.int32


def test_validation_and_the_learner_use_the_state_of_the_best(tmp_path):
    made, episodes = recipe(), tasks()
    given = {"optimizer": optax.adam(0.05), "key": KEY}
    validation = il.Validation(episodes, every=1)
    reports = []
    outcome = il.fit(
        made.estimator(Same(episodes), 4), made.init_meta, steps=4, validation=validation,
        report=reports.append, **given,
    )  # fmt: skip
    best = reports[outcome.best_step - 1].evaluation.mean["loss"][-1]
    found = il.evaluate(outcome.learner, outcome.meta, episodes, KEY).mean["loss"][-1]
    np.testing.assert_allclose(found, best, 1e-5)
    stale = il.evaluate(made.learner, outcome.meta, episodes, KEY).mean["loss"][-1]
    assert abs(stale - best) > 1e-4

    # A learner that is given follows the run too.
    longer = dataclasses.replace(made.learner, adaptation=il.GradientDescent(optax.sgd(RATE), 4))
    own = validation._replace(learner=longer)
    after = il.fit(
        made.estimator(Same(episodes), 4), made.init_meta, steps=1, validation=own,
        report=reports.append, **given,
    )  # fmt: skip
    found = il.evaluate(
        longer.with_state(after.learner.problem.state), reports[-1].meta, episodes, KEY
    ).mean["loss"][-1]
    np.testing.assert_allclose(reports[-1].evaluation.mean["loss"][-1], found, 1e-5)

    # A run that is resumed goes on from the state, and remembers that of the best.
    checkpoints = il.training.Checkpoints(tmp_path / "run", every=2)
    run = lambda steps, resume: il.fit(
        made.estimator(Same(episodes), 4), made.init_meta, steps=steps, validation=validation,
        checkpoints=checkpoints, resume=resume, **given,
    )  # fmt: skip
    run(2, False)
    resumed = run(4, True)
    jax.tree.map(np.testing.assert_array_equal, resumed.meta, outcome.meta)
    jax.tree.map(
        np.testing.assert_array_equal,
        resumed.learner.problem.state,
        outcome.learner.problem.state,
    )
    # Other frozen arrays are another run.
    other = recipe(frozen=FROZEN | {"scales": jnp.array([1, 2, 4], jnp.int8)})
    with pytest.raises(il.errors.RunError, match=r"frozen.scales"):
        il.fit(
            other.estimator(Same(episodes), 4), made.init_meta, steps=6, validation=validation,
            checkpoints=checkpoints, resume=True, **given,
        )  # fmt: skip


def test_phases_continue_the_state():
    made, episodes = recipe(), tasks()
    whole = made.estimator(Same(episodes), 4)
    first = dataclasses.replace(whole, gradient=il.FirstOrder())
    given = {"steps": 3, "key": KEY, "optimizer": optax.sgd(0.0)}
    both = il.fit(il.estimators.Phases(first, whole, until=2), made.init_meta, **given)
    alone = il.fit(whole, made.init_meta, **given)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-6),
        both.learner.problem.state,
        alone.learner.problem.state,
    )
    assert alone.learner.problem.state["count"] == 3 * STEPS


def test_parts_of_a_sum_share_the_mean_of_their_states():
    made, one, other = recipe(), tasks(), tasks(4, jax.random.key(1))
    parts = [made.estimator(Same(episodes), 4) for episodes in (one, other)]
    given = {"steps": 2, "key": KEY, "optimizer": optax.sgd(0.0)}
    both = il.estimators.WeightedSum((parts[0], 3.0), (parts[1], 1.0))
    first = dataclasses.replace(parts[0], gradient=il.FirstOrder())
    found = il.fit(il.estimators.Phases(first, both, until=1), made.init_meta, **given)
    # The same as one batch of the tasks of both, with their weights.
    every = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)
    every = dataclasses.replace(every, weight=jnp.repeat(jnp.array([3.0, 1.0]), 4))
    mixed = il.estimators.Phases(first, made.estimator(Same(every), 8), until=1)
    expected = il.fit(mixed, made.init_meta, **given)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-5),
        found.learner.problem.state,
        expected.learner.problem.state,
    )
    assert found.learner.problem.state["count"] == 2 * STEPS


def growing_state():
    """From 1, two of three tasks keep a finite state; in the last, the parameter overflows it."""

    def inner(given, meta, batch, key):
        return jnp.sum(given.params**2), {}, given.state * batch

    outer = lambda given, meta, batch, key: jnp.sum((given.params - 1) ** 2)
    problem = il.Problem(lambda meta, support, key: meta, inner, outer, state=jnp.ones(()))
    factors = jnp.array([2.0, 4.0, jnp.inf])
    learning = il.GradientDescent(optax.sgd(0.1), 1)
    return il.WholeTasks(problem, learning, il.Unroll(), Same(il.Episode(factors, factors)), 3)


@pytest.mark.parametrize("policy", [il.training.Skip(3), il.training.Clip(10.0, 3)])
def test_a_step_whose_model_state_is_not_finite_is_a_fault(policy):
    estimator, reports = growing_state(), []
    given = {"optimizer": optax.sgd(0.1), "steps": 2, "key": KEY}
    with pytest.raises(il.errors.RunError, match=r"model state is no longer finite.*task 2 with"):
        il.fit(estimator, jnp.array(2.0), **given)
    with pytest.raises(il.errors.RunError, match="no longer finite"):
        il.fit(il.estimators.WeightedSum((estimator, 1.0)), jnp.array(2.0), **given)
    outcome = il.fit(estimator, jnp.array(2.0), non_finite=policy, report=reports.append, **given)
    assert outcome.faults == 2 and [report.fault.tasks for report in reports] == [(2,), (2,)]
    assert outcome.learner.problem.state == 1
    # Two of three tasks count with the derivative 2 * (1.6 - 1) * 0.8.
    moved = 2.0 if policy.norm is None else 2.0 - 0.1 * 0.96 * 2 / 3
    np.testing.assert_allclose(reports[0].meta, moved, rtol=1e-5)


def test_a_part_of_a_sum_with_a_faulty_state_is_left_out():
    faulty, key = growing_state(), jax.random.key(1)
    tasks = Same(jax.tree.map(lambda leaf: leaf[:2], faulty.tasks.episodes))
    sound = dataclasses.replace(faulty, tasks=tasks, batch=2)
    both = il.estimators.WeightedSum((faulty, 1.0), (sound, 1.0))
    meta = jnp.array(2.0)
    _, after = both.step(meta, both.init(meta, key), (None, None), key, 0)
    np.testing.assert_allclose(both.model_state(after), 3.0)


def test_a_state_of_another_form_is_not_continued():
    made, episodes = recipe(), tasks()
    whole = made.estimator(Same(episodes), 4)
    problem = il.Problem(
        *(lambda meta, support, key: meta["head"],),
        *(lambda params, meta, batch, key: (jnp.sum(params.params**2), {}, params.state + 1),),
        *(lambda params, meta, batch, key: jnp.sum(params.params**2) + params.state,),
        state=jnp.zeros(()),
    )
    other = il.WholeTasks(problem, made.adaptation, il.Unroll(), Same(episodes), 4)
    phases = il.estimators.Phases(whole, other, until=1)
    entered = phases.enter(phases.init(None, KEY), None, KEY, 1)
    assert phases.model_state(entered) is problem.state
    both = il.estimators.WeightedSum((whole, 1.0), (other, 1.0))
    state = both.init(None, KEY)
    assert both.model_state(state) is None
    assert both.with_model_state(state, jnp.ones(()))[0] is state[0]
    assert both.with_model_state(state, jnp.ones(()))[1] == 1


class Fresh(eqx.Module):
    """Another task for each key."""

    def sample(self, key, n):
        return jax.vmap(lambda key: jax.tree.map(lambda leaf: leaf[0], tasks(1, key)))(
            jax.random.split(key, n)
        )


def test_a_run_goes_on_in_a_phase_without_a_model_state(tmp_path):
    made = recipe()
    whole = made.estimator(Same(tasks()), 4)
    windows = il.estimators.TruncatedUnroll(
        made.problem, made.adaptation, Fresh(), window=2, horizon=4, batch=2
    )
    phases = il.estimators.Phases(whole, windows, until=1)
    run = lambda steps, resume: il.fit(
        phases, made.init_meta, optimizer=optax.sgd(1e-3), steps=steps, key=KEY, resume=resume,
        checkpoints=il.training.Checkpoints(tmp_path / "run", every=1),
    )  # fmt: skip
    run(1, False)
    assert run(2, True).step == 2
    assert run(3, True).step == 3


@pytest.mark.parametrize("kind", [il.estimators.TruncatedUnroll, il.estimators.PersistentES])
def test_windows_carry_the_state_through_a_run(kind):
    made = recipe()
    more = {"sigma": 0.01} if kind is il.estimators.PersistentES else {}
    runs = kind(made.problem, made.adaptation, Fresh(), window=2, horizon=4, batch=2, **more)
    outcome = il.fit(runs, made.init_meta, optimizer=optax.sgd(1e-3), steps=2, key=KEY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outcome.meta))


LARGE = {"table": np.ones((1024, 512), np.float32), "weights": None}


def large_problem():
    def loss(params, meta, batch, key):
        return jnp.mean((batch.inputs @ (meta["table"][:3] * params) - batch.targets) ** 2)

    return il.Problem(lambda meta, support, key: meta["weights"], loss, loss, frozen=LARGE)


def constants(program) -> int:
    """Bytes of the largest constant in a lowered program."""
    sizes = [0]
    for line in program.as_text().splitlines():
        if 'stablehlo.constant dense<"' in line or "dense_resource" in line:
            sizes.append(len(line))
    return max(sizes)


def test_frozen_arrays_have_no_optimizer_state_no_cotangent_and_are_no_constants():
    problem, learn = large_problem(), il.GradientDescent(optax.adam(0.1, eps_root=1e-8), 2)
    meta, episodes = {"table": None, "weights": jnp.ones((3, 512))}, tasks()
    episodes = dataclasses.replace(
        episodes,
        support=il.Examples(episodes.support.inputs, jnp.ones((4, 6, 512))),
        query=il.Examples(episodes.query.inputs, jnp.ones((4, 6, 512))),
    )
    f = il.meta_value_and_grad(problem, learn)
    _, grads = f(meta, episodes, KEY)
    assert jax.tree.structure(grads) == jax.tree.structure(meta)
    estimator = il.WholeTasks(problem, learn, il.Unroll(), Same(episodes), 4)
    optimizer = optax.adam(1e-3)
    outcome = il.fit(estimator, meta, optimizer=optimizer, steps=1, key=KEY)
    assert jax.tree.structure(outcome.meta) == jax.tree.structure(meta)

    def step(estimator, meta):
        estimate, _ = estimator.step(meta, (), None, KEY, jnp.int32(0))
        return estimate.grads

    lowered = eqx.filter_jit(step).lower(estimator, meta)
    assert constants(lowered.lowered) < 2**20
    # No value of the size of the frozen table but the table itself: it has no cotangent.
    closed = jax.make_jaxpr(lambda table, meta: il.meta_value_and_grad(
        dataclasses.replace(problem, frozen={"table": table, "weights": None}), learn
    )(meta, episodes, KEY))(LARGE["table"], meta)  # fmt: skip
    assert LARGE["table"].shape not in _shapes_made(closed.jaxpr)


def test_frozen_arrays_of_a_schedule_and_a_proximal_problem_are_no_constants():
    problem, adaptation = large_problem(), il.GradientDescent(optax.sgd(0.1), 1)
    meta, episodes = {"table": None, "weights": jnp.ones((3, 512))}, tasks()
    episodes = dataclasses.replace(
        episodes,
        support=il.Examples(episodes.support.inputs, jnp.ones((4, 6, 512))),
        query=il.Examples(episodes.query.inputs, jnp.ones((4, 6, 512))),
    )

    def schedule(step):
        return dataclasses.replace(
            problem, step_weights=lambda k: jnp.full(k + 1, step)
        ), adaptation

    scheduled = il.WholeTasks(
        *(problem, adaptation, il.Unroll(), Same(episodes), 4), schedule=schedule
    )
    near = il.gradients.proximal(problem, 1.0)
    projected = il.gradients.projected_gradient(problem, lambda p, m: p + m["weights"], 0.1)
    for estimator in (
        scheduled,
        il.WholeTasks(near, adaptation, il.Implicit(), Same(episodes), 4),
        il.WholeTasks(problem, adaptation, il.Implicit(condition=projected), Same(episodes), 4),
    ):
        step = lambda estimator, meta: estimator.step(meta, (), None, KEY, jnp.int32(0))[0].grads
        assert constants(eqx.filter_jit(step).lower(estimator, meta).lowered) < 2**20


def _shapes_made(jaxpr) -> set:
    made = set()
    for eqn in jaxpr.eqns:
        made |= {getattr(out.aval, "shape", None) for out in eqn.outvars}
        for inner in jaxprs_in_params(eqn.params):
            made |= _shapes_made(inner)
    return made


def test_plan_counts_frozen_arrays():
    problem, learn = large_problem(), il.GradientDescent(optax.sgd(0.1), 2)
    meta = {"table": None, "weights": jnp.ones((3, 512))}
    x = jnp.ones((2, 2, 6, 3))
    episodes = il.Episode(
        il.Examples(x[0], jnp.ones((2, 6, 512))), il.Examples(x[1], jnp.ones((2, 6, 512)))
    )
    need = LARGE["table"].nbytes
    assert need < il.plan(problem, learn, meta, episodes, "64MiB").memory
    small = dataclasses.replace(problem, frozen={"table": LARGE["table"][:3], "weights": None})
    assert il.plan(small, learn, meta, episodes, "64MiB").memory < need


def test_check_finds_no_fault_in_a_model_state():
    made = recipe()
    found = il.check(made.problem, made.adaptation, made.init_meta(KEY), tasks(2), KEY)
    assert not found.findings


def bad(**changed):
    made = recipe(**changed)
    return il.meta_value_and_grad(made.problem, made.adaptation)(made.init_meta(KEY), tasks(), KEY)


def test_bad_input_is_refused():
    with pytest.raises(StructureError, match="returns the state for the next step"):
        bad(inner_loss=lambda params, meta, batch, key: jnp.mean(params.params["head"]))
    with pytest.raises(StructureError, match="state of another structure"):
        bad(inner_loss=lambda params, meta, batch, key: (jnp.mean(params.params["head"]), {}, {}))
    with pytest.raises(StructureError, match="random key"):
        bad(state={"rng": KEY})
    with pytest.raises(StructureError, match=r"state holds a leaf that is not an array.*'abc'"):
        bad(state="abc")
    with pytest.raises(StructureError, match="state holds a leaf that is not an array"):
        bad(state={"activation": jnp.tanh})
    with pytest.raises(StructureError, match="frozen holds a leaf that is not an array"):
        bad(frozen=FROZEN | {"scales": np.array(["a", "b"])})
    with pytest.raises(StructureError, match=r"come without one.*Stateful\(params, state"):
        made, meta = recipe(), recipe().init_meta(KEY)
        made.learner.predict(meta, meta, jax.tree.map(lambda leaf: leaf[0], tasks().query), KEY)
    with pytest.raises(StructureError, match="do not fit into meta"):
        bad(frozen={"weights": None, "scales": jnp.ones(3)})
    with pytest.raises(StructureError, match="which the adaptation does not carry"):
        made, unchanged = recipe(), il.Procedure(lambda meta, support, key: meta)
        il.meta_value_and_grad(made.problem, unchanged)(made.init_meta(KEY), tasks(), KEY)
    with pytest.raises(StructureError, match="carry the model state"):
        model = il.models.Model(init, apply, "carried", FROZEN, state_before(), learn)
        il.recipes.protonet(model, il.models.cross_entropy, 2)
    with pytest.raises(StructureError, match="not one of this learner's problem"):
        recipe().learner.with_state({"mean": jnp.zeros(4)})
    with pytest.raises(StructureError, match="supervised_problem"):
        model = il.models.Model(init, apply, "carried", FROZEN, state_before(), learn)
        il.models.supervised_loss(model, il.models.mean_squared_error)


def test_init_returns_no_frozen_array():
    loss = lambda params, meta, batch, key: jnp.mean(batch.inputs @ params["weights"])
    frozen = {"weights": None, "shift": jnp.ones(3), "deep": [None, jnp.ones(2)]}
    weights, learning = jnp.ones((3, 1)), il.GradientDescent(optax.sgd(0.1), 1)
    meta, whole = {"weights": weights, "shift": None, "deep": [weights, None]}, lambda meta: meta

    def learned(part):
        start = lambda meta, support, key: part(meta)
        problem = il.Problem(start, loss, loss, frozen=frozen)
        _, grads = il.meta_value_and_grad(problem, learning)(meta, tasks(2), KEY)
        return grads, il.adapt(problem, learning, meta, tasks(2).support, KEY)[0]

    with pytest.raises(StructureError, match=r"as params\['deep'\]\[1\]; params\['shift'\]"):
        learned(whole)
    with pytest.raises(StructureError, match="init returns frozen arrays"):
        learned(lambda meta: {"weights": meta["weights"], "part": meta["shift"]})
    frozen["rate"] = meta["rate"] = 0.5
    with pytest.raises(StructureError, match=r"as params\['rate'\]\. Expected"):
        learned(lambda meta: {"weights": meta["weights"], "rate": meta["rate"]})
    meta["rate"] = None
    _, adapted = learned(lambda meta: il.problem.learned_part(meta, frozen))
    assert adapted["shift"] is None
    # A copy is a start that the task may change, and one array may be in two places.
    learned(lambda meta: {"weights": meta["weights"], "shift": meta["shift"] + 0})
    frozen["deep"][1] = weights
    learned(lambda meta: {"weights": meta["weights"]})


def test_predictions_take_the_meta_that_fit_returns():
    made, episodes = recipe(), tasks(1)
    meta, task = made.init_meta(KEY), jax.tree.map(lambda leaf: leaf[0], episodes)
    adapted, _ = il.adapt(made.problem, made.adaptation, meta, task.support, KEY)
    whole = made.problem.whole(meta)
    bare, filled = (made.learner.predict(adapted, each, task.query, KEY) for each in (meta, whole))
    np.testing.assert_array_equal(bare, filled)


STATES = {
    "mean": jnp.array([1.0, jnp.nan, 5.0]),
    "count": jnp.array([2, 9, 3]),
    "seen": jnp.array([False, True, False]),
}
BEFORE = {"mean": jnp.array(7.0), "count": jnp.array(1), "seen": jnp.array(True)}
MEANS = {
    "every task counts": (None, {"mean": 3.0, "count": 3, "seen": False}),
    "one weighs more": ([1.0, 0.0, 3.0], {"mean": 4.0, "count": 3, "seen": False}),
    "none counts": ([0.0, 0.0, 0.0], {"mean": 7.0, "count": 1, "seen": True}),
}


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_of_states_leaves_out_tasks_that_do_not_count(name):
    weight, expected = MEANS[name]
    states = STATES if weight is not None else jax.tree.map(lambda x: x[jnp.array([0, 2])], STATES)
    weight = None if weight is None else jnp.array(weight)
    found = mean_state(states, weight, BEFORE)
    assert {leaf: float(found[leaf]) for leaf in found} == expected
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, BEFORE)
