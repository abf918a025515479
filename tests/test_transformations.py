"""What optimizers are given, what type their state has, and which parameters are judged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from quick import without

import innerloop as il

KEY = jax.random.key(3)
START = {"w": jnp.array([0.5, -1.0]), "b": jnp.array([0.25])}
INPUTS = jnp.array([[1.0, 2.0], [0.0, 1.0], [-1.0, 1.0]])
SUPPORT = il.Examples(INPUTS, jnp.array([1.0, 0.0, 2.0]))


def loss(params, meta, batch, key):
    errors = batch.inputs @ params["w"] + params["b"] - batch.targets
    return jnp.mean(errors**2) + jnp.sum(params["w"] ** 4) / 8


PROBLEM = il.Problem(lambda meta, support, key: meta, loss, loss)


def by_hand(optimizer, steps, start=START, asks=(), support=SUPPORT):
    """The optimizer's state and the parameters after a loop that a user of Optax writes."""
    params, state = start, optimizer.init(start)
    of = lambda params, *_, **__: loss(params, None, support, None)
    for _ in range(steps):
        value, gradient = jax.value_and_grad(of)(params)
        offers = {"value": value, "grad": gradient, "value_fn": of, "obj_fn": of}
        offers["grad_fn"] = jax.grad(of)
        updates, state = optimizer.update(gradient, state, params, **{a: offers[a] for a in asks})
        params = optax.apply_updates(params, updates)
    return state, params


def adapted(learn, start=START, support=SUPPORT):
    return jax.jit(lambda meta: il.adapt(PROBLEM, learn, meta, support, KEY)[0])(start)


def assert_close(found, expected, rtol=1e-6):
    same = lambda a, b: np.testing.assert_allclose(
        np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=rtol
    )
    jax.tree.map(same, found, expected)


@pytest.fixture(autouse=True)
def promotion():
    """Optax's own code promotes, in the loops by hand."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Arguments.

ASKING = {
    "polyak_sgd": (lambda: optax.polyak_sgd(0.1), ("value",)),
    "momo": (lambda: contrib.momo(0.1), ("value",)),
    "reduce_on_plateau": (
        lambda: optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau(0.5, 1)),
        ("value",),
    ),
    "line search": (
        lambda: optax.chain(optax.sgd(0.9), optax.scale_by_backtracking_linesearch(5)),
        ("value", "grad", "value_fn"),
    ),
    "sam": (lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.05)), ()),
    "opaque sam": (
        lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
        ("grad_fn",),
    ),
    "sophia": (lambda: contrib.sophia(0.1), ("obj_fn",)),
    "MultiSteps": (lambda: optax.MultiSteps(optax.polyak_sgd(0.1), 2), ("value",)),
    "sam in a chain": (
        lambda: optax.chain(
            optax.clip(0.5),
            il.optimizers.named_arguments(contrib.sam(optax.sgd(0.1), optax.sgd(0.05))),
        ),
        (),
    ),
}


@pytest.mark.parametrize("name", without({"momo", "reduce_on_plateau", "MultiSteps"}, ASKING))
def test_the_inner_loop_gives_an_optimizer_what_its_signature_asks_for(name):
    make, asks = ASKING[name]
    found = adapted(il.GradientDescent(make(), steps=3))
    assert_close(found, by_hand(make(), 3, asks=asks)[1], rtol=1e-5)


def tasks(key):
    rows = jax.random.normal(key, (2, 3, 2))
    return il.Episode(*(il.Examples(half, jnp.sum(half, axis=1)) for half in rows))


PLAIN = il.GradientDescent(optax.sgd(0.1), 0)
WHOLE = il.WholeTasks(PROBLEM, PLAIN, il.Unroll(), il.tasks.IndependentTasks(tasks), batch=2)


OUTER = [name for name in ASKING if name != "sophia"]


def fit_by_hand(optimizer, steps, asks=()):
    """Meta is the parameters themselves: no inner step is taken."""
    meta, state = START, optimizer.init(START)
    for t in range(steps):
        queries = il.training.tasks_of_step(WHOLE, KEY, t).episodes.query

        def of(meta, *_, queries=queries, **__):
            return jnp.mean(jax.vmap(lambda query: loss(meta, None, query, None))(queries))

        value, gradient = jax.value_and_grad(of)(meta)
        offers = {"value": value, "grad": gradient, "value_fn": of, "grad_fn": jax.grad(of)}
        updates, state = optimizer.update(gradient, state, meta, **{a: offers[a] for a in asks})
        meta = optax.apply_updates(meta, updates)
    return state, meta


@pytest.mark.parametrize("name", without(ASKING.keys() - {"line search", "opaque sam"}, OUTER))
def test_fit_gives_an_optimizer_what_its_signature_asks_for(name):
    make, asks = ASKING[name]
    found = il.fit(WHOLE, START, optimizer=make(), steps=3, key=KEY).meta
    assert_close(found, fit_by_hand(make(), 3, asks)[1], rtol=1e-5)


def test_fit_has_no_second_derivatives_to_give():
    with pytest.raises(
        il.errors.StructureError, match=r"outer optimizer failed.*obj_fn must be provided"
    ):
        il.fit(WHOLE, START, optimizer=contrib.sophia(0.1), steps=1, key=KEY)


def test_a_line_search_sees_the_slope_under_every_inner_rule():
    """`HoldConstant` holds the value constant, of which the search takes the derivative."""

    def probing(rule):
        def update(gradient, state, params, *, value_fn):
            return jax.tree.map(lambda g: -0.1 * g, gradient), jax.grad(value_fn)(params)

        optimizer = optax.GradientTransformationExtraArgs(lambda params: params, update)
        learn = il.GradientDescent(optimizer, steps=1)
        loop = il.gradients.StoreAll()
        state, _, _ = il.extend.run(PROBLEM, learn, START, SUPPORT, KEY, rule, loop)
        return state.optimizer

    expected = jax.grad(lambda params: loss(params, None, SUPPORT, None))(START)
    for rule in (il.gradients.Exact(), il.MixedMode(), il.gradients.HoldConstant()):
        assert_close(probing(rule), expected)


@pytest.mark.parametrize("gradient", [il.Unroll(il.MixedMode()), il.FirstOrder()], ids=str)
def test_an_optimizer_may_take_the_gradient_of_the_value_alone(gradient):
    """A search that stores the gradient of its last value does."""
    search = optax.scale_by_backtracking_linesearch(5, store_grad=True)
    learn = il.GradientDescent(optax.chain(optax.sgd(0.9), search), steps=2)
    task = il.Episode(SUPPORT, SUPPORT)
    at = lambda gradient: jax.jit(
        jax.value_and_grad(
            lambda meta: il.meta_objective(PROBLEM, learn, gradient)(meta, task, KEY)[0]
        )
    )(START)
    (found, slope), (expected, exact) = at(gradient), at(il.Unroll())
    assert_close(found, expected)
    if gradient != il.FirstOrder():
        assert_close(slope, exact, rtol=1e-5)


# Refusals, and their cures.


def test_an_argument_that_a_part_of_a_chain_refuses():
    chain = optax.chain(optax.clip(0.5), contrib.sam(optax.sgd(0.1), optax.sgd(0.05)))
    message = "unexpected keyword argument.*il.optimizers.named_arguments"
    with pytest.raises(il.errors.StructureError, match=message):
        adapted(il.GradientDescent(chain, steps=1))  # the cure is a row of ASKING
    with pytest.raises(il.errors.StructureError, match=message):
        il.fit(WHOLE, START, optimizer=chain, steps=1, key=KEY)


def test_lookahead_with_plain_parameters():
    raw = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    with pytest.raises(il.errors.StructureError, match=r"Write: il\.optimizers\.lookahead"):
        adapted(il.GradientDescent(raw, steps=1))  # the cure is a row of JUDGED


def test_an_optimizer_that_changes_shapes():
    scalar = il.Problem(
        lambda meta, support, key: meta, lambda p, m, b, k: p**2, lambda p, m, b, k: p**2
    )
    learn = il.GradientDescent(optax.scale_by_distance_over_gradients(), steps=1)
    support = jnp.ones(3)
    with pytest.raises(il.errors.StructureError, match="changes the shapes"):
        il.adapt(scalar, learn, jnp.array(0.5), support, KEY)
    ones = il.Problem(
        lambda meta, support, key: meta, lambda p, m, b, k: p[0] ** 2, lambda p, m, b, k: p[0] ** 2
    )
    found, _ = il.adapt(ones, learn, jnp.array([0.5]), support, KEY)
    assert found.shape == (1,) and np.isfinite(found).all()


def growing(update_state):
    return optax.GradientTransformation(
        lambda params: jnp.zeros(1), lambda updates, state, params=None: (updates, update_state)
    )


@pytest.mark.parametrize("steps", [1, 12])
def test_a_state_of_other_shapes_is_refused_for_every_number_of_steps(steps):
    learn = il.GradientDescent(growing(jnp.zeros(2)), steps)
    with pytest.raises(il.errors.StructureError, match=r"changes its structure or its shapes"):
        adapted(learn)
    assert adapted(il.GradientDescent(growing(jnp.zeros(1)), steps)).keys() == START.keys()


class Widening(il.extend.Adaptation):
    """Its state is wider after a step, or cast back as the error says."""

    cast: bool
    steps: int = 1
    origin: il.extend.Origin = il.extend.Origin.STEPS

    def init(self, problem, meta, support, key):
        return meta.astype(jnp.bfloat16)

    def step(self, problem, meta, support, state, key, inner_gradient):
        after = state.astype(jnp.float32) * 0.5
        if self.cast:
            after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)
        return after, None

    def params(self, state):
        return state


@pytest.mark.parametrize("steps", [1, 12])
def test_an_adaptation_of_one_s_own_keeps_its_type(steps):
    problem = il.Problem(None, None, lambda params, meta, batch, key: jnp.sum(params))
    call = lambda cast: il.adapt(problem, Widening(cast, steps), jnp.ones(2), SUPPORT, KEY)[0]
    with pytest.raises(il.errors.StructureError, match="changes its type in a step"):
        call(False)
    np.testing.assert_array_equal(call(True), 0.5**steps)


# The state's type.

CHANGING = {
    "rmsprop, momentum": lambda: optax.rmsprop(0.1, momentum=0.9),
    "lars": lambda: optax.lars(0.1),
    "cocob": lambda: contrib.cocob(),
    "dog": lambda: contrib.dog(eps=1e-2),
    "schedule_free": lambda: contrib.schedule_free_sgd(0.1),
    "NumPy's b1": lambda: optax.adam(0.1, b1=np.float64(0.9), eps_root=1e-8),
    "float64 rate": lambda: optax.sgd(np.float64(0.1), momentum=0.9),
    "array rate": lambda: optax.sgd(jnp.float32(0.1), momentum=0.9),
}
NARROW = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (START, SUPPORT))


@pytest.mark.parametrize("name", without(CHANGING.keys() - {"lars", "NumPy's b1"}, CHANGING))
def test_a_state_that_changes_its_type_has_one_behaviour_for_every_number_of_steps(name):
    """Unrolled or scanned, the parameters are those of a loop by hand."""
    make = CHANGING[name]
    start, support = NARROW
    for steps in (2, 10):
        found = adapted(il.GradientDescent(make(), steps), start, support)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
        expected = by_hand(make(), steps, start, support=support)[1]
        assert_close(found, expected, rtol=0.03)


def test_the_types_are_those_that_the_steps_settle_on():
    """A state in bfloat16 would stop counting at 256."""

    def update(updates, state, params=None):
        return updates, jax.tree.map(lambda leaf: leaf + jnp.float32(1), state)

    counting = optax.GradientTransformation(lambda params: {"n": jnp.bfloat16(255)}, update)
    state = il.transformations.begin(counting, NARROW[0])
    assert state["n"].dtype == jnp.float32 and state["n"] == 255
    learn = il.GradientDescent(counting, steps=12)
    loop, rule = il.gradients.StoreAll(), il.gradients.Exact()
    given = (PROBLEM, learn, *NARROW, KEY, rule, loop)
    state, _, _ = il.extend.run(*given)
    assert state.optimizer["n"] == 255 + 12


def test_float64_rates_of_float32_parameters(x64):
    start, support = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (START, SUPPORT))
    make = lambda: optax.sgd(jnp.asarray(0.1, jnp.float64), momentum=0.9)
    found = adapted(il.GradientDescent(make(), 10), start, support)
    assert found["w"].dtype == jnp.float32
    assert_close(found, by_hand(make(), 10, start, support=support)[1], rtol=1e-5)


@pytest.mark.parametrize(
    "name", without(["lars", "NumPy's b1"], ["rmsprop, momentum", "lars", "NumPy's b1"])
)
def test_fit_carries_a_state_that_changes_its_type(name):
    start = NARROW[0]
    found = il.fit(WHOLE, start, optimizer=CHANGING[name](), steps=3, key=KEY)
    assert found.meta["w"].dtype == jnp.bfloat16 and np.isfinite(found.meta["w"]).all()


# Which parameters are judged.


def mean_of_iterates(optimizer):
    """An optimizer whose state has the mean of the parameters after each step."""

    def update(updates, state, params=None):
        inner, mean, n = state
        updates, inner = optimizer.update(updates, inner, params)
        after = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda m, p: m + (p - m) / (n + 1), mean, after)
        return updates, (inner, mean, n + 1)

    def init(params):
        return optimizer.init(params), jax.tree.map(jnp.zeros_like, params), jnp.int32(0)

    return optax.GradientTransformation(init, update)


JUDGED = {
    "schedule_free": (
        lambda: contrib.schedule_free_sgd(0.1),
        contrib.schedule_free_eval_params,
    ),
    "lookahead": (
        lambda: il.optimizers.lookahead(optax.sgd(0.1), 2, 0.5),
        il.optimizers.slow_params,
    ),
    "mean of iterates": (
        lambda: mean_of_iterates(optax.sgd(0.1)),
        lambda state, params: state[1],
    ),
}


def lookahead_by_hand(value_and_slope, steps):
    """Optax's own way: the parameters are a pair."""
    optimizer = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    pair = optax.LookaheadParams.init_synced(START)
    state = optimizer.init(pair)
    for t in range(steps):
        updates, state = optimizer.update(value_and_slope(pair.fast, t), state, pair)
        pair = optax.apply_updates(pair, updates)
    return pair.slow


@pytest.mark.parametrize("name", JUDGED)
def test_the_parameters_that_are_judged(name):
    make, judged = JUDGED[name]
    learn = il.GradientDescent(make(), steps=3, judged=judged)
    if name == "lookahead":
        slope = jax.grad(lambda params: loss(params, None, SUPPORT, None))
        expected = lookahead_by_hand(lambda params, t: slope(params), 3)
    else:
        expected = judged(*by_hand(make(), 3))
    assert_close(adapted(learn), expected)
    episode = il.Episode(SUPPORT, SUPPORT)
    value, _ = il.meta_objective(PROBLEM, learn)(START, episode, KEY)
    np.testing.assert_allclose(value, loss(expected, None, SUPPORT, None), rtol=1e-5)
    unjudged = adapted(il.GradientDescent(make(), steps=3))
    assert not np.allclose(unjudged["w"], expected["w"], rtol=1e-3)


@pytest.mark.parametrize("averaging", without([0.0], [0.0, 0.5]))
def test_fit_returns_and_validates_the_judged_parameters(averaging):
    make, judged = JUDGED["schedule_free"]
    episodes = il.tasks.evaluation_episodes(WHOLE.tasks, 2, seed=1)
    validation = il.training.Validation(episodes, every=3)
    seen = []
    options = {"steps": 3, "key": KEY, "judged": judged, "averaging": averaging}
    report = lambda progress: seen.append(progress.evaluation)
    found = il.fit(WHOLE, START, optimizer=make(), validation=validation, report=report, **options)
    each = [judged(*fit_by_hand(make(), steps)) for steps in (1, 2, 3)]
    mix = lambda old, new: jax.tree.map(lambda a, b: averaging * a + (1 - averaging) * b, old, new)
    expected = functools.reduce(mix, each, START)
    assert_close(found.meta, expected, rtol=1e-5)
    of_query = jax.vmap(lambda query: loss(expected, None, query, None))
    np.testing.assert_allclose(
        seen[-1].mean["loss"][-1], jnp.mean(of_query(episodes.query)), rtol=1e-5
    )


def test_a_judge_is_a_function_of_state_and_parameters():
    message = r"judged must be a function of .optimizer_state, params.*Write: GradientDescent"
    with pytest.raises(il.errors.StructureError, match=message):
        il.GradientDescent(optax.sgd(0.1), 1, judged=lambda params: params)


def test_second_derivatives_of_a_loss_that_is_held_are_refused():
    """A Newton step by obj_fn is that of `adapt` under every meta-gradient, or refused."""

    def update(gradient, state, params, *, obj_fn):
        return jax.tree.map(lambda g, h: -g / h, gradient, jax.hessian(obj_fn)(params)), state

    newton = il.GradientDescent(optax.GradientTransformationExtraArgs(lambda p: (), update), 1)
    problem = il.Problem(
        lambda meta, support, key: meta["w"],
        lambda params, meta, batch, key: (params - 1.0) ** 4,
        lambda params, meta, batch, key: params**2,
    )
    meta, episode = {"w": jnp.array(2.0)}, il.Episode(jnp.zeros(1), jnp.zeros(1))
    at = lambda gradient: il.meta_objective(problem, newton, gradient)(
        meta, episode, jax.random.key(0)
    )[0]
    for gradient in (il.Unroll(), il.Unroll(il.MixedMode()), il.ForwardMode()):
        np.testing.assert_allclose(at(gradient), (2 - 4 / 12) ** 2, rtol=1e-6)
    with pytest.raises(il.errors.GradientError, match=r"held constant.*obj_fn"):
        at(il.FirstOrder())
