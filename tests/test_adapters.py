"""Networks of other libraries as models: the same network, the same meta-gradient, their rules."""

import functools
import inspect

import equinox as eqx
import extras
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import (
    ADAPTERS,
    EPSILON,
    INPUTS,
    OUTPUTS,
    POLICIES,
    WIDTH,
    EquinoxNetwork,
    linen_network,
    nnx_network,
    normalised,
    read_out,
    running,
    start,
    weights,
    whole,
)

import innerloop as il
from innerloop.checks import optional_package
from innerloop.errors import RunError, StructureError
from innerloop.models import Model
from innerloop.models.base import MODEL

STEPS, RATE = 3, 0.1
KEY = jax.random.key(0)
every_adapter = pytest.mark.parametrize("name", ADAPTERS)
every_policy = pytest.mark.parametrize("policy", POLICIES)
# These libraries promote types and ranks themselves.
pytestmark = pytest.mark.usefixtures("usual_promotion")


@pytest.fixture
def usual_promotion(strict_promotion):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def rows(*shape, seed=0):
    inputs, targets = jax.random.split(jax.random.key(seed))
    drawn = lambda key, width: jax.random.normal(key, (*(shape or (5,)), width), float)
    return il.Examples(drawn(inputs, INPUTS), drawn(targets, OUTPUTS))


def squares(outputs, examples):
    return jnp.mean((outputs - examples.targets) ** 2)


def by_hand(w, support, query, policy, averages):
    """MAML of the formula: three steps, with the state held constant."""
    state = start()
    for _ in range(STEPS):

        def loss(w, state=state):
            hidden, mean, var = normalised(w, support.inputs, state, policy != "frozen")
            return squares(read_out(w, jnp.tanh(hidden)), support), (mean, var)

        slopes, statistics = jax.grad(loss, has_aux=True)(w)
        w = jax.tree.map(lambda leaf, slope: leaf - RATE * slope, w, slopes)
        if policy == "carried":
            state = jax.lax.stop_gradient(running(state, *statistics))
    if policy == "carried":
        state = averages(state, STEPS)
    hidden, _, _ = normalised(w, query.inputs, state, policy == "transductive")
    return squares(read_out(w, jnp.tanh(hidden)), query)


@every_policy
@every_adapter
def test_the_meta_gradient_of_maml_is_that_of_the_formula(x64, name, policy):
    """So it is the same in all libraries; running averages are a library's own."""
    adapter, w = ADAPTERS[name], weights(np.float64)
    episodes = il.Episode(rows(2, 5), rows(2, 7, seed=1))

    def expected_loss(w):
        of_task = lambda each: by_hand(w, each.support, each.query, policy, adapter.averages)
        return jnp.mean(jax.vmap(of_task)(episodes))

    expected, slopes = jax.jit(jax.value_and_grad(expected_loss))(w)
    model = adapter.model(policy)
    recipe = il.recipes.maml(model, il.models.mean_squared_error, RATE, STEPS)
    meta = adapter.into(recipe.init_meta(KEY), w)
    f = il.meta_value_and_grad(recipe.problem, recipe.adaptation, recipe.gradient)
    (loss, _), grads = f(meta, episodes, KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert jax.tree.structure(grads) == jax.tree.structure(meta)
    for got, want in zip(
        jax.tree.leaves(grads), jax.tree.leaves(adapter.into(meta, slopes)), strict=True
    ):
        scale = np.max(np.abs(want)) + 1e-6  # the bias before statistics of the rows has none
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * scale)


@every_policy
@every_adapter
def test_a_model_keeps_its_word(name, policy):
    """Structure, policy, state, frozen arrays, transformations, and the same bits again."""
    model = ADAPTERS[name].model(policy)
    params, other = model.init(KEY), model.init(jax.random.key(1))
    assert jax.tree.structure(params) == jax.tree.structure(other)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params))
    assert len(jax.tree.leaves(params)) == 6
    assert model.normalisation == ("none" if (name, policy) == ("functions", "frozen") else policy)
    kinds = {leaf.dtype.kind for leaf in jax.tree.leaves(model.frozen)}
    assert "i" in kinds and (model.state is not None) == (policy == "carried")
    x, given = rows().inputs, whole(model, params)
    outputs, after = jax.jit(model.learn)(given, x, KEY, None)
    assert outputs.shape == (5, OUTPUTS)
    assert jax.tree.structure(after) == jax.tree.structure(model.state)
    np.testing.assert_array_equal(outputs, jax.jit(model.learn)(given, x, KEY, None)[0])
    alone = jax.jit(model.apply)(given, x, None, None)
    np.testing.assert_allclose(model.apply(given, x, None, None), alone, rtol=1e-4, atol=1e-6)
    changed = jax.jit(model.apply)(given, x.at[0].add(1), None, None)
    assert np.allclose(alone[1:], changed[1:]) == (policy != "transductive")
    tasks = jax.vmap(lambda x: model.apply(given, x, None, None))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(tasks[0], alone, rtol=1e-4, atol=1e-5)


@every_policy
@every_adapter
def test_masks(name, policy):
    """Padding changes nothing, or is refused where it would count in the statistics."""
    model, x, mask = ADAPTERS[name].model(policy), rows().inputs, jnp.arange(5) < 3
    given = whole(model, model.init(KEY))
    padded = jnp.where(mask[:, None], x, jnp.nan)
    for mode, refused in (("learn", policy != "frozen"), ("apply", policy == "transductive")):
        f = getattr(model, mode)
        if refused:
            with pytest.raises(StructureError, match=r"padded rows would count.*'frozen'"):
                f(given, padded, None, mask)
            continue
        outputs = lambda x, mask, f=f: jax.tree.leaves(f(given, x, None, mask))[0]
        np.testing.assert_allclose(outputs(padded, mask)[:3], outputs(x, None)[:3], rtol=1e-5)


@every_adapter
def test_outputs_follow_the_precision_of_the_parameters(name):
    model = ADAPTERS[name].model("transductive")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.init(KEY))
    wide = np.asarray(rows().inputs, np.float64)
    assert model.apply(whole(model, params), wide, None, None).dtype in (jnp.bfloat16, jnp.float32)


@every_adapter
def test_dropout_has_its_mean_and_variance(name):
    """The head is linear, so that both are known."""
    rate, draws = 0.25, 2000
    model = ADAPTERS[name].model("frozen", rate)
    w = weights()
    given = whole(model, ADAPTERS[name].into(model.init(KEY), w))
    x = rows(2).inputs
    draw = jax.jit(jax.vmap(lambda key: model.learn(given, x, key, None)[0]))
    drawn = np.asarray(draw(jax.random.split(KEY, draws)), np.float64)
    hidden, _, _ = normalised(w, x, start(), of_rows=False)
    mean = np.asarray(read_out(w, jnp.tanh(hidden)))
    variance = np.asarray(jnp.tanh(hidden) ** 2 @ w["head"] ** 2) * rate / (1 - rate)
    np.testing.assert_allclose(model.apply(given, x, KEY, None), mean, rtol=1e-4, atol=1e-5)
    error = 5 * np.sqrt(variance / draws)
    assert np.all(np.abs(drawn.mean(0) - mean) < error)
    assert np.all(np.abs(drawn.var(0) / variance - 1) < 5 * np.sqrt(3 / draws))
    between = np.mean((drawn[:, 0] - mean[0]) * (drawn[:, 1] - mean[1]), axis=0)
    assert np.all(np.abs(between) < 5 * np.sqrt(variance[0] * variance[1] / draws))


@every_adapter
def test_no_array_of_the_network_is_a_part_of_the_program(name, monkeypatch):
    monkeypatch.setattr("foreign.WIDTH", 512)
    model = ADAPTERS[name].model("carried", 0.5)
    given, x = whole(model, model.init(KEY)), rows().inputs
    for f in (lambda *a: model.learn(*a, KEY, None), lambda *a: model.apply(*a, None, None)):
        constants = jax.make_jaxpr(f)(given, x).consts
        assert sum(getattr(each, "nbytes", 0) for each in constants) < 100


def test_the_random_streams_of_an_nnx_module_are_independent_and_start_anew():
    nnx = optional_package("flax.nnx", "a test", extra="ecosystem")

    class Two(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return jnp.stack([self.first(x), self.second(x), self.first(x)], axis=-1)

    model = il.adapters.from_nnx(Two)
    learn = jax.jit(model.learn)
    drawn, _ = learn(model.init(KEY), jnp.ones((3, 1000)), KEY, None)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(jnp.mean(drawn[..., a] * drawn[..., b]) - 1) < 0.1
    for key in (KEY, jax.random.PRNGKey(0)):
        once, again = (learn({}, jnp.ones((3, 9)), key, None)[0] for _ in range(2))
        np.testing.assert_array_equal(once, again)
    with pytest.raises(StructureError, match="draws at random, and has no key"):
        model.learn({}, jnp.ones((3, 9)), None, None)


def test_a_module_that_is_given_is_the_start_for_every_key_and_is_never_changed():
    nnx = optional_package("flax.nnx", "a test", extra="ecosystem")
    network = nnx_network()(nnx.Rngs(7), 0.5)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.RngState))))
    model = il.adapters.from_nnx(network, normalisation="carried")
    np.testing.assert_array_equal(model.init(KEY)["body"]["kernel"], network.body.kernel[...])
    given = whole(model, model.init(KEY))
    _, state = model.learn(given, rows().inputs, KEY, None)
    assert not np.array_equal(state["norm"]["mean"], model.state["norm"]["mean"])
    after = nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.RngState)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert network.dropout.deterministic is False and network.dropout.rngs.count[...] == 0


def test_an_equinox_module_comes_alone_or_with_its_state():
    made = EquinoxNetwork(KEY)
    module, state = eqx.nn.make_with_state(EquinoxNetwork)(KEY)
    x, outputs = rows().inputs, []
    for given in (made, (module, state), eqx.nn.make_with_state(EquinoxNetwork), EquinoxNetwork):
        for policy in POLICIES:
            model = il.adapters.from_equinox(given, normalisation=policy)
            _, after = model.learn(whole(model, model.init(KEY)), x, None, None)
            assert (after is None) == (policy != "carried")
            outputs.append(model.apply(whole(model, model.init(KEY)), x, None, None))
    for i, each in enumerate(outputs):
        np.testing.assert_array_equal(each, outputs[i % 3])
    assert model.init(KEY).body.weight.shape == (WIDTH, INPUTS)
    with pytest.raises(StructureError, match=r"the state is missing.*make_with_state"):
        il.adapters.from_equinox(module, normalisation="carried")


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_transductive_statistics_of_equinox_are_those_of_the_rows_alone(mode):
    """Also where the running averages of a trained module would take part."""
    norm = eqx.nn.BatchNorm(INPUTS, "rows", mode=mode)
    module, state = eqx.nn.make_with_state(lambda: norm)()
    x = rows().inputs
    over = jax.vmap(module, axis_name="rows", in_axes=(0, None), out_axes=(0, None))
    _, trained = over(5 + x, state)
    model = il.adapters.from_equinox((module, trained), normalisation="transductive")
    unit = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON)
    outputs = model.apply(whole(model, model.init(KEY)), x, None, None)
    np.testing.assert_allclose(outputs, unit, rtol=1e-4)
    assert model.learn is None  # training is no other mode


def test_the_call_of_a_module_is_another_one():
    """Each is called on the whole batch, with the arguments that it names."""
    linear = eqx.nn.Linear(INPUTS, OUTPUTS, key=KEY)
    model = il.adapters.from_equinox(
        linear, call=lambda module, inputs, training, key: (1 + training) * jax.vmap(module)(inputs)
    )
    x, given = rows().inputs, model.init(KEY)
    outputs = model.apply(given, x, None, None)
    np.testing.assert_allclose(outputs, jax.vmap(linear)(x), rtol=1e-6)
    np.testing.assert_allclose(model.learn(given, x, None, None)[0], 2 * outputs, rtol=1e-6)

    def over_rows(module, inputs, state):
        over = jax.vmap(module, axis_name="rows", in_axes=(0, None), out_axes=(0, None))
        return over(inputs, state)

    usual, own = (
        il.adapters.from_equinox(EquinoxNetwork, normalisation="carried", call=call)
        for call in (None, over_rows)
    )
    given = whole(usual, usual.init(KEY))
    for a, b in zip(
        jax.tree.leaves(usual.learn(given, x, None, None)),
        jax.tree.leaves(own.learn(given, x, None, None)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_the_call_of_a_flax_module_is_another_one():
    class WithTrain(nnx_network()):
        def __call__(self, x, train):
            return super().__call__(x) * (1 + train)

    call = lambda module, inputs, training: module(inputs, train=training)
    model = il.adapters.from_nnx(WithTrain, call=call, normalisation="frozen")
    usual = il.adapters.from_nnx(nnx_network(), normalisation="frozen")
    x, given = rows().inputs, whole(usual, usual.init(KEY))
    np.testing.assert_array_equal(
        model.learn(given, x, KEY, None)[0], 2 * usual.learn(given, x, KEY, None)[0]
    )
    np.testing.assert_array_equal(
        model.apply(given, x, None, None), usual.apply(given, x, None, None)
    )


def test_linen_variables_that_are_given_are_the_start_for_every_key():
    network, x = linen_network()(), rows().inputs
    drawn = ADAPTERS["linen"].model("carried")
    call = lambda module, inputs, training: module(inputs, train=training)
    variables = network.init(jax.random.key(3), x, False)
    shapes = jax.ShapeDtypeStruct(x.shape, x.dtype)
    for model in (
        il.adapters.from_linen(network, variables=variables, call=call, normalisation="carried"),
        il.adapters.from_linen(network, shapes, train="train", normalisation="carried"),
    ):
        assert jax.tree.structure(model.init(KEY)) == jax.tree.structure(drawn.init(KEY))
        last = model.init(jax.random.key(3))["params"]["head"]["kernel"]
        np.testing.assert_array_equal(last, variables["params"]["head"]["kernel"])


def test_inputs_are_real_numbers_or_tokens_but_no_pixels():
    class Tokens(eqx.Module):
        embedding: eqx.nn.Embedding

        def __call__(self, x):
            return jnp.mean(jax.vmap(self.embedding)(x["ids"]), axis=0) + x["shift"]

    model = il.adapters.from_equinox(lambda key: Tokens(eqx.nn.Embedding(9, OUTPUTS, key=key)))
    inputs = {"ids": jnp.arange(6).reshape(2, 3), "shift": np.zeros((2, OUTPUTS))}
    params = model.init(KEY)
    assert model.apply(params, inputs, None, jnp.array([True, False])).shape == (2, OUTPUTS)
    pixels = inputs | {"shift": np.zeros((2, OUTPUTS), np.uint8)}
    with pytest.raises(StructureError, match=r"may be pixels.*astype\(float\) / 255"):
        model.apply(params, pixels, None, None)
    with pytest.raises(StructureError, match="must be arrays"):
        model.apply(params, {"ids": "text"}, None, None)


def modules():
    """A module of each library, and the call that makes a model of it."""
    nnx = optional_package("flax.nnx", "a test", extra="ecosystem")
    linear = eqx.nn.Linear(INPUTS, OUTPUTS, key=KEY)
    return {
        "adapters.from_equinox(module)": linear,
        "adapters.from_nnx(module)": nnx.Linear(INPUTS, OUTPUTS, rngs=nnx.Rngs(0)),
        "adapters.from_linen(module, inputs)": linen_network()(),
        "adapters.from_functions(init, apply)": (linear.__init__, linear.__call__),
    }


def takers():
    """The functions of the library that take a model, with the names of these arguments."""
    spaces = il.models, il.recipes, il.tasks.optimization
    found = {f.__name__: f for space in spaces for f in vars(space).values() if callable(f)}
    kinds = {
        name: [each for each, kind in getattr(f, "__kinds__", {}).items() if kind is MODEL]
        for name, f in found.items()
    }
    return {name: (found[name], names) for name, names in kinds.items() if names}


def test_a_module_in_place_of_a_model_is_refused_with_its_adapter(as_users_see_it):
    """Wherever an argument is annotated as a model."""
    annotated = {
        name
        for space in (il.models, il.recipes, il.tasks.optimization)
        for name, f in vars(space).items()
        if inspect.isfunction(f)
        if any(p.annotation is Model for p in inspect.signature(f).parameters.values())
    }
    assert set(takers()) == annotated and len(annotated) >= 20
    for name, (f, names) in takers().items():
        for each in names:
            for call, module in modules().items():
                needed = {
                    other: il.models.mlp([1, 1]) if other in names else 2
                    for other, parameter in inspect.signature(f).parameters.items()
                    if parameter.default is parameter.empty
                }
                with pytest.raises(StructureError, match="must be a Model") as caught:
                    f(**needed | {each: module})
                assert caught.value.write == f"{name}(..., {each}={call})"


def test_a_class_or_a_function_of_other_arguments_in_place_of_a_module(as_users_see_it):
    """The call that makes an instance is named, in adapters and where a model is wanted."""
    nnx = optional_package("flax.nnx", "a test", extra="ecosystem")

    class Bare(nnx.Module):
        def __init__(self, *, rngs):
            self.layer = nnx.Linear(1, 1, rngs=rngs)

    made = {
        nnx.Linear: "adapters.from_nnx(lambda rngs: Linear(..., rngs=rngs))",
        Bare: "adapters.from_nnx(lambda rngs: Bare(rngs=rngs))",
        eqx.nn.MLP: "adapters.from_equinox(lambda key: MLP(..., key=key))",
        eqx.nn.Identity: "adapters.from_equinox(lambda key: Identity(key=key))",
        linen_network(): "adapters.from_linen(Network(), inputs)",
    }
    for cls, call in made.items():
        with pytest.raises(StructureError, match="must be a Model") as caught:
            il.recipes.maml(cls, il.models.cross_entropy)
        assert caught.value.write == f"maml(..., model={call})"
        adapter = call.split("(")[0].removeprefix("adapters.")
        if cls is not eqx.nn.Identity:  # it takes any arguments
            with pytest.raises(StructureError, match=f"the class {cls.__qualname__}") as caught:
                getattr(il.adapters, adapter)(cls)
            assert caught.value.write == call
        for other in {"from_nnx", "from_equinox"} - {adapter}:
            with pytest.raises(StructureError, match=f"the class {cls.__qualname__}") as caught:
                getattr(il.adapters, other)(cls)
            assert caught.value.write == call
    for adapter, argument in (("from_nnx", "rngs"), ("from_equinox", "key")):
        for function in (lambda: None, lambda a, b: None):
            with pytest.raises(StructureError, match=f"one argument, {argument}"):
                getattr(il.adapters, adapter)(function)


def test_what_an_adapter_does_not_take_is_refused(as_users_see_it):
    refused = {
        "from_equinox": (3, lambda key: 3, lambda key: (key, None)),
        "from_nnx": (3, lambda rngs: 3, eqx.nn.Linear(1, 1, key=KEY)),
        "from_linen": (3, lambda key: 3),
    }
    for name, values in refused.items():
        for value in values:
            with pytest.raises(StructureError, match="does not take this module"):
                getattr(il.adapters, name)(value)
    linen = linen_network()()
    x = rows().inputs
    wrong = {
        "does not know all arguments.*train": lambda: il.adapters.from_linen(linen, x),
        "no argument training": lambda: il.adapters.from_linen(
            linen_network()(), x, train="training", call=None
        ),
        "either example inputs or the variables": lambda: il.adapters.from_linen(linen),
        "name of an argument, or a whole call": lambda: il.adapters.from_linen(
            linen, x, train="train", call=lambda module, inputs: module(inputs)
        ),
        "does not know all arguments": lambda: il.adapters.from_equinox(
            eqx.nn.Linear(1, 1, key=KEY), call=lambda module, inputs, mask: 0
        ),
        "what init returns holds a leaf that is not an array": lambda: il.adapters.from_functions(
            lambda key: {"w": jnp.ones(2), "act": jnp.tanh}, lambda params, inputs: inputs
        ),
        "init failed on what it was given": lambda: il.adapters.from_functions(
            lambda key: {}["w"], lambda params, inputs: inputs
        ),
        "what state returns holds a leaf": lambda: il.adapters.from_functions(
            lambda key: jnp.ones(2),
            lambda params, inputs, state: inputs,
            state=lambda key: "abc",
            normalisation="carried",
        ),
        "parameters come without one": lambda: il.adapters.from_functions(
            lambda key: jnp.ones(2),
            lambda params, inputs, state: inputs,
            state=lambda key: jnp.ones(2),
            normalisation="carried",
        ).apply(jnp.ones(2), x, None, None),
        "complex parameters": lambda: il.adapters.from_functions(
            lambda key: jnp.ones(2, complex), lambda params, inputs: inputs
        ),
    }
    for message, call in wrong.items():
        with pytest.raises(StructureError, match=message):
            call()


def test_linen_is_told_what_it_is_not_given(as_users_see_it):
    linen = optional_package("flax.linen", "a test", extra="ecosystem")
    from_linen, x, dense = il.adapters.from_linen, rows().inputs, linen.Dense(2)

    class Counting(linen.Module):
        @linen.compact
        def __call__(self, x):
            self.variable("cache", "calls", lambda: jnp.zeros(())).value += 1
            return linen.Dropout(0.5, deterministic=False)(x)

    class Drawing(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dropout(0.5, deterministic=False)(linen.Dense(2)(x))

    counting, drawing = from_linen(Counting(), x), from_linen(Drawing(), x)
    wrong = {
        r"from a batch of inputs. Got: inputs=\(1, 3\)": lambda: from_linen(dense, (1, 3)),
        "not those of flax.linen. Got: variables=3": lambda: from_linen(dense, variables=3),
        "nothing carries.*collection": lambda: counting.apply(counting.frozen, x, KEY, None),
        "at random, and has no key": lambda: drawing.apply(drawing.init(KEY), x, None, None),
    }
    for message, call in wrong.items():
        with pytest.raises(StructureError, match=message):
            call()


def test_a_parameter_of_nnx_may_be_a_pytree():
    nnx = optional_package("flax.nnx", "a test", extra="ecosystem")

    class Paired(nnx.Module):
        def __init__(self, rngs):
            pair = jnp.array([1.0, 2.0]), jnp.array([3, 4])
            self.layer, self.pair = nnx.Linear(2, 2, rngs=rngs), nnx.Param({"both": pair})

        def __call__(self, x):
            scale, shift = self.pair.get_value()["both"]
            return self.layer(x) * scale + shift

    module, x = Paired(nnx.Rngs(0)), jnp.ones((3, 2))
    model = il.adapters.from_nnx(module)
    params = model.init(KEY)
    assert params["pair"]["both"].keys() == {0, 1} and params["pair"]["both"][1] is None
    whole = il.problem.overlay(params, model.frozen)
    np.testing.assert_allclose(model.apply(whole, x, None, None), module(x), rtol=1e-6)
    alone = il.adapters.from_nnx(
        module, call=lambda module, x: x * module.pair.get_value()["both"][0]
    )
    f = lambda params: jnp.sum(alone.apply(il.problem.overlay(params, alone.frozen), x, None, None))
    np.testing.assert_allclose(jax.grad(f)(params)["pair"]["both"][0], [3.0, 3.0])


def test_a_function_that_makes_a_module_of_nnx_gets_rngs(as_users_see_it):
    nnx = optional_package("flax.nnx", "a test", extra="ecosystem")
    with pytest.raises(StructureError, match=r"with an nnx.Rngs.*such as lambda rngs: Network"):
        il.adapters.from_nnx(lambda key: nnx.Linear(2, 2, rngs=nnx.Rngs(key)))


def test_a_mode_that_the_call_itself_leaves_as_it_is_is_refused():
    """`tests/cures_adapters.py` has the modules; a bound argument and None are no fault."""
    layer = eqx.nn.Linear(2, 2, key=KEY)
    apply = lambda params, inputs, *, train=False: inputs * params * (1 + train)
    init = lambda key: jnp.ones(2)
    with pytest.raises(StructureError, match="argument train, which from_equinox would leave"):
        il.adapters.from_equinox(layer, call=lambda module, inputs, train=False: inputs)
    with pytest.raises(StructureError, match="argument train, which from_functions would leave"):
        il.adapters.from_functions(init, apply)
    il.adapters.from_functions(init, functools.partial(apply, train=True))
    il.adapters.from_functions(init, apply, functools.partial(apply, train=True))
    il.adapters.from_equinox(eqx.nn.Dropout(0.5))
    with pytest.raises(StructureError, match=r"such as apply=lambda params, inputs, key: apply"):
        il.adapters.from_functions(init, lambda params, key, inputs, more: inputs)


def test_a_network_that_does_not_follow_its_policy_is_refused():
    nnx = optional_package("flax.nnx", "a test", extra="ecosystem")

    class Fixed(nnx.Module):
        def __init__(self, rngs, running):
            self.norm, self.running = nnx.BatchNorm(INPUTS, rngs=rngs), running

        def __call__(self, x):
            return self.norm(x, use_running_average=self.running)

    x = rows().inputs
    for policy, averages, mode in (
        ("transductive", True, "apply"),
        ("carried", True, "learn"),
        ("carried", False, "apply"),
        ("frozen", False, "apply"),
    ):
        model = il.adapters.from_nnx(
            lambda rngs, averages=averages: Fixed(rngs, averages), normalisation=policy
        )
        message = "uses running averages" if averages else "updates its batch statistics"
        with pytest.raises(StructureError, match=message):
            getattr(model, mode)(whole(model, model.init(KEY)), x, None, None)


def test_without_flax_the_error_says_what_to_install(as_users_see_it):
    with extras.blocked(["flax"]):
        for adapter in (il.adapters.from_nnx, il.adapters.from_linen):
            with pytest.raises(RunError, match="needs the package flax"):
                adapter(3)
        with pytest.raises(StructureError, match="must be a Model"):
            il.recipes.maml(3, il.models.mean_squared_error)


def test_the_running_variance_of_equinox_is_far_off_after_few_updates():
    """Which its docstring says; if this fails, Equinox has changed and it can go."""
    module, state = eqx.nn.make_with_state(lambda: eqx.nn.BatchNorm(1, "rows", mode="batch"))()
    over = lambda module, x, state: jax.vmap(
        module, axis_name="rows", in_axes=(0, None), out_axes=(0, None)
    )(x, state)
    x = jnp.array([[-1.0], [1.0]])
    _, state = over(module, x, state)
    outputs, _ = over(eqx.nn.inference_mode(module), x, state)
    np.testing.assert_allclose(outputs[1] ** -2, 0.99 / 0.01 + 1, rtol=1e-3)


def test_heads_and_contexts_take_the_networks_of_other_libraries():
    body = ADAPTERS["equinox"].model("carried", 0.5)
    whole_network = il.models.linear_head(body, OUTPUTS, 4)
    recipe = il.recipes.anil(whole_network, il.models.mean_squared_error, steps=2)
    x = jnp.ones((3, 5, INPUTS)) * jnp.arange(5.0)[:, None]
    examples = il.Examples(x, jnp.zeros((3, 5, 4)))
    meta = recipe.init_meta(KEY)
    f = il.meta_value_and_grad(recipe.problem, recipe.adaptation)
    (loss, _), grads = f(meta, il.Episode(examples, examples), KEY)
    assert jnp.isfinite(loss) and jnp.any(grads["body"].body.weight != 0)
    layers = [il.adapters.from_equinox(eqx.nn.Linear(2, 2, key=KEY)) for _ in range(2)]
    film = il.models.film(layers[0], 2, layers[1], context=3)
    assert film.apply(film.init(KEY), jnp.ones((4, 2)), None, None).shape == (4, 2)


def test_a_variable_of_nnx_that_is_written_and_not_carried_is_refused():
    nnx = pytest.importorskip("flax.nnx")

    class Counting(nnx.Module):
        def __init__(self, rngs):
            self.layer, self.calls = nnx.Linear(2, 1, rngs=rngs), nnx.Variable(jnp.zeros(()))

        def __call__(self, x):
            self.calls[...] += 1
            return self.layer(x)

    network = il.adapters.from_nnx(lambda rngs: Counting(rngs))
    whole = il.problem.overlay(network.init(jax.random.key(0)), network.frozen)
    with pytest.raises(il.errors.StructureError, match=r"that nothing carries.*calls"):
        network.apply(whole, jnp.ones((3, 2)), None, None)
