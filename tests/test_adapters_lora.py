"""Chosen, frozen and factored parts of networks, against sums and products in float64."""

import functools
import operator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.adapters._where import chosen_leaves, named_leaves, split
from innerloop.problem import overlay

KEY = jax.random.key(5)
MLP = il.models.mlp([3, 4, 5])
TRANSFORMER = il.models.transformer(vocabulary=7, width=8, depth=2, heads=2, length=6)
CONV = il.models.conv4(5, filters=3, blocks=2)
matching, freeze = il.adapters.matching, il.adapters.freeze
lora, lora_factors, lora_merge = il.adapters.lora, il.adapters.lora_factors, il.adapters.lora_merge
merged_params = il.adapters.merged_params


class Pair(NamedTuple):
    left: jax.Array
    right: list


TREES = {
    "dict": MLP.init(KEY),
    "transformer": TRANSFORMER.init(KEY),
    "conv": CONV.init(KEY),
    "namedtuple": Pair(jnp.ones(3), [jnp.zeros((2, 2)), {"norm": jnp.ones(2), "7": jnp.ones(())}]),
    "equinox": eqx.filter(eqx.nn.MLP(2, 3, 4, 1, key=KEY), eqx.is_array),
    "equal leaves": {"a": (x := jnp.ones(2)), "b": {"a": x, "b": x}},
}
is_matrix = matching(lambda path, leaf: leaf.ndim >= 2)


# Of each tree some choices: patterns, predicates, functions, and what is made of them.
CHOICES = [
    *[("dict", matching(text)) for text in ("head", "body.0", "*weights", "b?dy.[0-9].bias")],
    ("dict", matching("head.bias", "body.*.weights")),
    ("dict", ~matching("*bias")),
    ("dict", matching("head") | (lambda tree: tree["body"][0]["bias"])),
    ("dict", (lambda tree: tree["body"]) & is_matrix),
    ("dict", (lambda tree: tree["body"]) | matching("head.bias")),
    ("transformer", ~matching("*norm*")),
    ("transformer", matching("body.blocks") & is_matrix & ~matching("*norm*", "*bias")),
    ("conv", matching(lambda path, leaf: leaf.ndim == 4)),
    ("namedtuple", matching("right.1.norm", "left")),
    ("namedtuple", matching("right.1.7")),
    ("equinox", matching("layers.0")),
    ("equinox", matching("*.bias")),
    ("equal leaves", matching("b.a")),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(CHOICES)]
each_choice = pytest.mark.parametrize(("name", "where"), CHOICES, ids=IDS)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@each_choice
def test_a_choice_and_the_rest_are_the_tree(name, where):
    tree = TREES[name]
    inside, outside = where(tree), (~where)(tree)
    assert inside and outside
    assert {**inside, **outside} == named_leaves(tree)
    assert not inside.keys() & outside.keys()
    assert (~~where)(tree) == inside
    marks = chosen_leaves(tree, where)
    assert [path in inside for path in named_leaves(tree)] == marks
    chosen, rest = split(tree, marks)
    assert list(named_leaves(chosen)) == [path for path in named_leaves(tree) if path in inside]
    same(eqx.combine(chosen, rest), tree)


@each_choice
@pytest.mark.parametrize("combine", [operator.or_, operator.and_])
def test_choices_obey_the_laws_of_sets(name, where, combine):
    tree, other = TREES[name], matching(lambda path, leaf: len(path) % 2 == 0)
    try:
        other(tree)
    except il.errors.StructureError:
        other = ~matching(lambda path, leaf: len(path) % 2 == 1)
    dual = operator.and_ if combine is operator.or_ else operator.or_
    assert combine(where, other)(tree) == combine(other, where)(tree)
    assert (~combine(where, other))(tree) == dual(~where, ~other)(tree)


@each_choice
def test_a_choice_is_a_where_of_subset(name, where):
    tree = TREES[name]
    part, merge = il.subset(tree, where)
    same(merge(part), tree)
    moved = merge(jax.tree.map(lambda leaf: leaf + 1, part))
    for path, leaf in named_leaves(moved).items():
        np.testing.assert_array_equal(leaf, named_leaves(tree)[path] + float(path in part))
    # Shapes are enough, as a recipe or a file has them before there are arrays.
    shapes = jax.eval_shape(lambda: tree)
    assert il.subset(shapes, where)[0].keys() == part.keys()


def test_a_choice_works_on_traced_arrays():
    tree = TREES["dict"]
    chosen = jax.jit(lambda tree: il.subset(tree, is_matrix)[0])(tree)
    same(chosen, is_matrix(tree))


def anything(path, leaf):
    return False


WRONG_CHOICES = {
    "misspelt": (lambda: matching("haed")(TREES["dict"]), "'haed'.*closest are head"),
    "brackets": (
        lambda: matching("a.[x]")({"a": {"[x]": 1.0}}),
        r"Write: matching\('a.\[\[\]x\]'\)",
    ),
    "another case": (lambda: matching("Head")(TREES["dict"]), "closest are head"),
    "keystr": (lambda: matching("['head']")(TREES["dict"]), "closest are head"),
    "one of two": (lambda: matching("head", "boddy")(TREES["dict"]), "'boddy'.*closest are body"),
    "negated": (lambda: (~matching("*norm*"))(TREES["dict"]), "no array has a path"),
    "in subset": (lambda: il.subset(TREES["dict"], matching("tail")), "no array has a path"),
    "no array": (lambda: matching("a")({}), "a tree with arrays"),
    "predicate": (lambda: matching(anything)(TREES["dict"]), "holds for no array.*body.0.bias"),
    "number": (lambda: matching(3), "neither|pattern of a path or by a predicate"),
    "predicate of one": (lambda: matching(lambda leaf: True), "pattern of a path.*leaf"),
    "equal paths": (lambda: matching("a")({"a.b": 1.0, "a": {"b": 2.0}}), "same path.*'a.b'"),
    "intersection": (
        lambda: il.subset(TREES["dict"], matching("head") & matching("body")),
        "selects no array",
    ),
}


@pytest.mark.parametrize("name", WRONG_CHOICES)
def test_a_choice_that_finds_nothing_is_refused_and_names_the_closest(name, as_users_see_it):
    call, message = WRONG_CHOICES[name]
    with pytest.raises(il.errors.StructureError, match=message):
        call()


# --- frozen parts --------------------------------------------------------------------------------

INPUTS = jax.random.normal(jax.random.key(1), (6, 3))


def whole(model, key=KEY):
    """All arrays as `apply` takes them."""
    return overlay(model.init(key), model.frozen)


FROZEN = [where for name, where in CHOICES if name == "dict"]


@pytest.mark.parametrize("where", FROZEN, ids=range(len(FROZEN)))
def test_a_frozen_network_computes_the_same_and_its_gradient_is_a_part_of_the_whole(where, x64):
    params = MLP.init(KEY)
    model = freeze(MLP, params, where)
    inputs = np.asarray(INPUTS, np.float64)
    assert model.normalisation == MLP.normalisation
    same(whole(model), params)
    chosen = chosen_leaves(params, where)
    paths = np.array(list(named_leaves(params)))
    assert list(named_leaves(model.frozen)) == list(paths[chosen])
    assert list(named_leaves(model.init(KEY))) == list(paths[~np.array(chosen)])
    loss = lambda params: jnp.sum(MLP.apply(params, inputs, None, None) ** 2)
    learned = lambda part: jnp.sum(
        model.apply(overlay(part, model.frozen), inputs, None, None) ** 2
    )
    gradient = named_leaves(jax.grad(loss)(params))
    for path, leaf in named_leaves(jax.grad(learned)(model.init(KEY))).items():
        np.testing.assert_allclose(leaf, gradient[path], rtol=1e-12)


def test_a_frozen_part_is_stored_in_bfloat16_and_computed_with_in_the_dtype_of_the_rest():
    params = MLP.init(KEY)
    model = freeze(MLP, params, ~matching("head"), dtype=jnp.bfloat16)
    stored = named_leaves(model.frozen)
    assert {leaf.dtype for leaf in stored.values()} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), params)
    rounded["head"] = params["head"]
    got = model.apply(whole(model), INPUTS, None, None)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, MLP.apply(rounded, INPUTS, None, None))


def quantised_apply(params, inputs, key, mask):
    body, head = params["body"], params["head"]
    return inputs @ (body["numbers"].astype(head.dtype) * body["scale"]) @ head


QUANTISED = il.models.Model(lambda key: NUMBERS, quantised_apply, "none")
NUMBERS = {
    "body": {"numbers": jnp.array([[127, -3], [5, 0], [-128, 9]], jnp.int8), "scale": jnp.ones(())},
    "head": jnp.ones((2, 4)),
}


def test_quantised_weights_are_frozen_as_they_are():
    model = freeze(QUANTISED, NUMBERS, matching("body"), dtype=jnp.bfloat16)
    assert model.frozen["body"]["numbers"].dtype == jnp.int8
    assert jax.tree.structure(model.init(KEY)["body"]) == jax.tree.structure(
        {"numbers": None, "scale": None}
    )
    np.testing.assert_array_equal(
        model.apply(whole(model), INPUTS, None, None), quantised_apply(NUMBERS, INPUTS, None, None)
    )


def test_what_is_frozen_stays_frozen():
    params = MLP.init(KEY)
    once = freeze(MLP, params, matching("body"))
    for given in (params, once.init(KEY)):  # the frozen arrays may be left out
        twice = freeze(once, given, matching("head.bias"))
        same(whole(twice), params)
        assert list(named_leaves(twice.init(KEY))) == ["head.weights"]


# --- low-rank factors ----------------------------------------------------------------------------

STACK = {"stack": jnp.ones((2, 5, 4, 3)), "conv": jnp.ones((3, 3, 2, 6)), "bias": jnp.ones(3)}
as_kernel = lambda path, shape: (-1, shape[-1])
# Tree, where, as_matrix, and the shape as which each chosen array is factored.
FACTORED = {
    "matrices": (
        TREES["dict"],
        matching("*weights"),
        None,
        {"body.0.weights": (3, 4), "head.weights": (4, 5)},
    ),
    "stack": (STACK, matching("stack"), None, {"stack": (2, 5, 4, 3)}),
    "kernel": (STACK, matching("conv"), as_kernel, {"conv": (18, 6)}),
    "equinox": (
        TREES["equinox"],
        lambda net: net.layers[0].weight,
        None,
        {"layers.0.weight": (4, 2)},
    ),
    "by path": (
        STACK,
        matching("conv", "stack"),
        lambda path, shape: (-1, shape[-1]) if path == "conv" else shape,
        {"stack": (2, 5, 4, 3), "conv": (18, 6)},
    ),
}


def drawn(factors, key=jax.random.key(8)):
    """Factors of which none is zero."""
    leaves, treedef = jax.tree.flatten(factors)
    keys = jax.random.split(key, len(leaves))
    fresh = [
        jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return treedef.unflatten(fresh)


@pytest.mark.parametrize("name", FACTORED)
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_factors_change_the_chosen_arrays_by_their_product(name, alpha, x64):
    tree, where, as_matrix, shapes = FACTORED[name]
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    factors = lora_factors(tree, 2, where, KEY, as_matrix=as_matrix)
    assert factors.keys() == shapes.keys()
    merge = functools.partial(lora_merge, as_matrix=as_matrix)
    same(merge(tree, factors, alpha), tree)  # one factor is zero at the start
    factors = drawn(factors)
    merged = named_leaves(merge(tree, factors, alpha))
    for path, leaf in named_leaves(tree).items():
        expected = np.asarray(leaf, np.float64)
        if path in shapes:
            a, b = (np.asarray(factors[path][each]).reshape(-1, *factors[path][each].shape[-2:])
                    for each in "ab")  # fmt: skip
            change = np.stack([x @ y for x, y in zip(a, b, strict=True)])
            assert change.shape[-2:] == shapes[path][-2:]
            expected = expected + (alpha or 2) / 2 * change.reshape(leaf.shape)
        np.testing.assert_allclose(merged[path], expected, rtol=1e-11)


def test_the_gradient_of_the_factors_is_the_product_rule(x64):
    """dL/da = s G bᵀ and dL/db = s aᵀ G, where G is the gradient of the merged array."""
    params = jax.tree.map(lambda leaf: leaf.astype(float), MLP.init(KEY))
    factors, alpha = drawn(lora_factors(params, 2, matching("*weights"), KEY)), 3.0
    inputs = np.asarray(INPUTS, np.float64)
    loss = lambda params: jnp.sum(jnp.sin(MLP.apply(params, inputs, None, None)))
    slopes = jax.grad(lambda factors: loss(lora_merge(params, factors, alpha)))(factors)
    whole_slope = named_leaves(jax.grad(loss)(lora_merge(params, factors, alpha)))
    for path, pair in factors.items():
        G = whole_slope[path]
        np.testing.assert_allclose(slopes[path]["a"], 1.5 * G @ pair["b"].T, rtol=1e-10)
        np.testing.assert_allclose(slopes[path]["b"], 1.5 * pair["a"].T @ G, rtol=1e-10)


def test_factors_are_drawn_independently_with_unit_variance_of_their_product():
    tree = {"x": jnp.ones((400, 50)), "y": jnp.ones((400, 50))}
    factors = lora_factors(tree, 20, matching("*"), KEY)
    a, b = factors["x"]["a"], factors["y"]["a"]
    assert abs(float(jnp.std(a)) * 400**0.5 - 1) < 0.05
    assert abs(float(jnp.corrcoef(a.ravel(), b.ravel())[0, 1])) < 0.05
    assert not np.array_equal(lora_factors(tree, 20, matching("*"), jax.random.key(6))["x"]["a"], a)


def test_factors_of_narrow_weights_are_wide_and_the_sum_is_narrow():
    tree = {"w": jnp.ones((3, 4), jnp.bfloat16)}
    factors = lora_factors(tree, 2, matching("w"), KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(factors)} == {jnp.dtype(jnp.float32)}
    merged = lora_merge(tree, drawn(factors))["w"]
    assert merged.dtype == jnp.bfloat16


def test_a_factored_network_learns_factors_and_what_is_learned_as_a_whole():
    params = MLP.init(KEY)
    model = lora(MLP, params, 2, matching("body") & is_matrix, learned=matching("head"), alpha=4)
    meta = model.init(KEY)
    assert list(named_leaves(meta)) == [
        *("base.head.bias", "base.head.weights"),
        *(f"factors.body.0.weights.{each}" for each in "ab"),
    ]
    assert list(named_leaves(model.frozen)) == ["base.body.0.bias", "base.body.0.weights"]
    np.testing.assert_array_equal(
        model.apply(whole(model), INPUTS, None, None), MLP.apply(params, INPUTS, None, None)
    )
    moved = drawn(meta)
    merged = lora_merge({**params, "head": moved["base"]["head"]}, moved["factors"], 4)
    got = model.apply(overlay(moved, model.frozen), INPUTS, None, None)
    np.testing.assert_array_equal(got, MLP.apply(merged, INPUTS, None, None))


def test_a_factored_network_stores_its_base_in_bfloat16_and_computes_in_float32():
    params = MLP.init(KEY)
    model = lora(MLP, params, 1, matching("*weights"), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.frozen)} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), params)
    np.testing.assert_array_equal(
        model.apply(whole(model), INPUTS, None, None), MLP.apply(rounded, INPUTS, None, None)
    )


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_merged_parameters_give_the_outputs_of_the_trained_model(dtype):
    network, params = il.models.conv4(5, filters=2), il.models.conv4(5, filters=2).init(KEY)
    kernels, images = matching("*weights"), jax.random.normal(KEY, (3, 16, 16, 1))
    given = {"learned": matching("*.shift"), "alpha": 5, "as_matrix": as_kernel, "dtype": dtype}
    model = lora(network, params, 1, kernels, **given)
    meta = drawn(model.init(KEY))
    merged = merged_params(model, meta)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(lambda x: x.dtype, merged) == jax.tree.map(lambda x: x.dtype, params)
    expected = model.apply(overlay(meta, model.frozen), images, None, None)
    np.testing.assert_array_equal(network.apply(merged, images, None, None), expected)
    # The parameters of a task with a model state, and a frozen network within the factored one.
    same(merged_params(model, il.Stateful(meta, jnp.ones(2))), merged)
    part = freeze(model, overlay(meta, model.frozen), matching("factors"))
    same(merged_params(model, merged_params(part, part.init(KEY))), merged)


def pair(rows, columns):
    return {"a": jnp.ones((rows, 1)), "b": jnp.ones((1, columns))}


PARAMS = MLP.init(KEY)
LARGE = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e6), PARAMS["head"])
VECTOR = "arrays with rows and columns"
WRONG = {
    "freeze nothing": (lambda: freeze(MLP, PARAMS, lambda p: ()), "selects no array"),
    "freeze what is not there": (lambda: freeze(MLP, PARAMS, matching("tail")), "closest are"),
    "freeze all": (lambda: freeze(MLP, PARAMS, matching("*")), "selects everything.*body.0.bias"),
    "freeze all but everything": (
        lambda: freeze(MLP, PARAMS, ~matching("*")),
        r"selects no array.*tree\['body'\]\[0\]\['bias'\]; ",
    ),
    "other sizes": (
        lambda: freeze(MLP, il.models.mlp([3, 5, 4]).init(KEY), is_matrix),
        r"not those of the network. Got: body.0.bias \(5,\), where",
    ),
    "a part missing": (
        lambda: lora(MLP, {"head": PARAMS["head"]}, 1, is_matrix),
        "not those of the network. Got: parameters without body.0.bias",
    ),
    "a part too many": (
        lambda: freeze(MLP, PARAMS | {"neck": 1.0}, is_matrix),
        r"neck \(\), which the network does not have",
    ),
    "a module": (
        lambda: freeze(MLP, eqx.nn.MLP(3, 4, 4, 1, key=KEY), is_matrix),
        r"params is a module.*from_equinox\(module\).init",
    ),
    "freeze in integers": (
        lambda: freeze(MLP, PARAMS, is_matrix, dtype=jnp.int8),
        r"dtype must be a floating-point dtype.*int8.*dtype=jax.numpy.bfloat16",
    ),
    "freeze in no dtype": (
        lambda: freeze(MLP, PARAMS, is_matrix, dtype="bf16"),
        "floating-point dtype.*'bf16'",
    ),
    "factor in booleans": (
        lambda: lora(MLP, PARAMS, 1, is_matrix, dtype=bool),
        "floating-point dtype",
    ),
    "freeze beyond the range": (
        lambda: freeze(MLP, {**PARAMS, "head": LARGE}, is_matrix, dtype=jnp.float16),
        r"beyond the range.*float32 up to 1e\+06 for 'head.weights'.*float16 has",
    ),
    "factor beyond the range": (
        lambda: lora(MLP, {**PARAMS, "head": LARGE}, 1, is_matrix, dtype=jnp.float8_e4m3fn),
        "beyond the range.*for 'head.bias'",
    ),
    "freeze by a text": (lambda: freeze(MLP, PARAMS, "body"), r"selects a part.*matching\('head'"),
    "freeze no model": (lambda: freeze(MLP.apply, PARAMS, matching("body")), "must be a Model"),
    "learn integers": (
        lambda: freeze(QUANTISED, NUMBERS, matching("head")),
        r"body.numbers: int8.*matching\('body.numbers'\) \| where",
    ),
    "text among the parameters": (
        lambda: freeze(MLP, {"a": "b"}, matching("a")),
        "not an array",
    ),
    "vector": (lambda: lora(MLP, PARAMS, 1, matching("head")), VECTOR + ".*matching.'head.weights"),
    "vector in factors": (lambda: lora_factors(PARAMS, 1, matching("*bias"), KEY), VECTOR),
    "everything": (lambda: lora(MLP, PARAMS, 1, matching("*")), VECTOR),
    "integers": (lambda: lora(QUANTISED, NUMBERS, 1, matching("*numbers")), VECTOR + ".*i8"),
    "nothing": (lambda: lora_factors(PARAMS, 1, matching("head") & matching("body"), KEY),
                "selects no array"),
    "rank": (lambda: lora(MLP, PARAMS, 4, is_matrix), "rank=4 for body.0.weights, 3 × 4.*rank=3"),
    "no rank": (lambda: lora(MLP, PARAMS, 0, is_matrix), "rank must be a whole number"),
    "alpha": (lambda: lora(MLP, PARAMS, 1, is_matrix, alpha=0), "alpha must be"),
    "both": (
        lambda: lora(MLP, PARAMS, 1, is_matrix, learned=matching("head")),
        "factored and to be learned as a whole. Got: head.weights",
    ),
    "as_matrix, sizes": (
        lambda: lora(MLP, PARAMS, 1, is_matrix, as_matrix=lambda path, shape: (7, -1)),
        r"cannot have.*\(3, 4\) as \(7, -1\)",
    ),
    "as_matrix, a vector": (
        lambda: lora(MLP, PARAMS, 1, is_matrix, as_matrix=lambda path, shape: (-1,)),
        "without rows and columns",
    ),
    "merge, no such path": (
        lambda: lora_merge(PARAMS, {"haed.weights": pair(4, 5)}),
        "'haed.weights'.*closest are head.weights",
    ),
    "merge, transposed": (
        lambda: lora_merge({"w": jnp.ones((6, 3))}, {"w": pair(3, 6)}),
        r"do not fit the array. Got: w: f32\[6,3\], a f32\[3,1\]",
    ),
    "merge, transposed as a matrix": (
        lambda: lora_merge({"w": jnp.ones((2, 3, 4))}, {"w": pair(4, 6)}, as_matrix=as_kernel),
        "do not fit the array",
    ),
    "merge, another as_matrix": (
        lambda: lora_merge({"w": jnp.ones((2, 3, 4))}, {"w": pair(6, 4)}),
        r"do not fit.*same as_matrix.*as_matrix=lambda path, shape: \(-1, shape\[-1\]\)",
    ),
    "merge, other ranks": (
        lambda: lora_merge({"w": jnp.ones((6, 3))}, {"w": {**pair(6, 3), "a": jnp.ones((6, 2))}}),
        "do not fit the array",
    ),
    "merge, frozen": (
        lambda: lora_merge({"w": None}, {"w": pair(6, 3)}),
        r"None in place of an array that has factors. Got: w.*merged_params\(model, meta\)",
    ),
    "merge, no model of lora": (
        lambda: merged_params(MLP, PARAMS),
        "only a model of freeze or lora",
    ),
    "merge, other parameters": (
        lambda: merged_params(lora(MLP, PARAMS, 1, is_matrix), PARAMS),
        "do not fit into meta",
    ),
    "merge, sizes": (
        lambda: lora_merge(PARAMS, {"head.weights": pair(3, 5)}),
        "do not fit the array",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parts_are_refused(name, as_users_see_it):
    call, message = WRONG[name]
    with pytest.raises(il.errors.StructureError, match=message):
        call()


# --- learned -------------------------------------------------------------------------------------

SINE = il.models.mlp([1, 6, 1])
EPISODES = il.tasks.SinusoidTasks(5, 5).sample(jax.random.key(2), 3)
mse = il.models.mean_squared_error


def in_float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def test_maml_of_a_factored_network_is_the_loop_written_by_hand(x64):
    """Two steps on the factors and the head, of a network whose matrices are W + (α / r) a b."""
    params, rate, alpha = in_float64(SINE.init(KEY)), 0.05, 3.0
    model = lora(SINE, params, 1, matching("*weights"), learned=matching("head.bias"), alpha=alpha)
    meta, episodes = drawn(model.init(KEY)), in_float64(EPISODES)
    recipe = il.recipes.maml(model, mse, rate, steps=2)
    (loss, _), grads = il.meta_value_and_grad(recipe.problem, recipe.adaptation)(
        meta, episodes, jax.random.key(3)
    )

    paths = ("body.0.weights", "head.weights")

    def outputs(theta, x):
        weights = [
            layer["weights"] + alpha * theta["factors"][path]["a"] @ theta["factors"][path]["b"]
            for path, layer in zip(paths, [*params["body"], params["head"]], strict=True)
        ]
        hidden = jax.nn.relu(x @ weights[0] + params["body"][0]["bias"][None])
        return hidden @ weights[1] + theta["base"]["head"]["bias"][None]

    def error(theta, rows):
        return jnp.mean((outputs(theta, rows.inputs) - rows.targets) ** 2)

    def learned(theta, i):
        support, query = jax.tree.map(lambda leaf: leaf[i], (episodes.support, episodes.query))
        for _ in range(2):
            slope = jax.grad(error)(theta, support)
            theta = jax.tree.map(lambda x, g: x - rate * g, theta, slope)
        return error(theta, query)

    by_hand = lambda meta: sum(learned(meta, i) for i in range(3)) / 3
    value, expected = jax.value_and_grad(by_hand)(meta)
    np.testing.assert_allclose(loss, value, rtol=1e-12)
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def in_other_places(model):
    """The same network with its parameters under other names."""
    there = lambda params: {"layers": params["body"], "out": {"last": params["head"]}}
    back = lambda params: {"body": params["layers"], "head": params["out"]["last"]}
    return il.models.Model(
        lambda key: there(model.init(key)),
        lambda params, *given: model.apply(back(params), *given),
        model.normalisation,
    )


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (il.recipes.anil, matching("out")),
        (il.recipes.anil, lambda params: params["out"]["last"]),
        (il.recipes.boil, ~matching("out.last")),
        (il.recipes.boil, lambda params: params["layers"]),
    ],
)
def test_a_recipe_adapts_the_part_that_where_selects(make, where):
    usual, other = make(SINE, mse), make(in_other_places(SINE), mse, where=where)
    results = []
    for recipe in (usual, other):
        f = il.meta_value_and_grad(recipe.problem, recipe.adaptation)
        results.append(f(recipe.init_meta(KEY), EPISODES, jax.random.key(3)))
    ((a, _), usual_grads), ((b, _), other_grads) = results
    np.testing.assert_allclose(a, b, rtol=1e-6)
    usual_grads = {"layers": usual_grads["body"], "out": {"last": usual_grads["head"]}}
    for x, y in zip(jax.tree.leaves(usual_grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_what_is_adapted_is_never_frozen():
    """A choice is made among the learned arrays: "all but" does not mean the frozen ones."""
    model = freeze(SINE, SINE.init(KEY), matching("body.0.weights"))
    recipe = il.recipes.anil(model, mse, where=~matching("head.bias"))
    meta = recipe.init_meta(KEY)
    params = recipe.problem.init(recipe.problem.whole(meta), None, KEY)
    assert params.keys() == {"body.0.bias", "head.weights"}


UNNAMED = in_other_places(SINE)
WRONG_RECIPES = {
    "no head": (lambda: il.recipes.anil(UNNAMED, mse), "no part .* 'head'.*layers.0, out.last"),
    "no body": (lambda: il.recipes.boil(UNNAMED, mse), "no part .* 'body'.*layers.0, out.last"),
    "frozen head": (
        lambda: il.recipes.anil(freeze(SINE, SINE.init(KEY), matching("head")), mse),
        "no part .* 'head'",
    ),
    "everything": (
        lambda: il.recipes.anil(UNNAMED, mse, where=matching("*")),
        r"selects everything.*Write: maml\(model, loss\)",
    ),
    "nothing": (lambda: il.recipes.boil(SINE, mse, where=lambda p: []), "selects no array"),
    "no such path": (
        lambda: il.recipes.anil(SINE, mse, where=matching("haed")),
        "closest are head",
    ),
    "a text": (lambda: il.recipes.anil(SINE, mse, where="head"), r"where=matching\('head'\)"),
}


@pytest.mark.parametrize("name", WRONG_RECIPES)
def test_a_recipe_refuses_a_part_that_is_none(name, as_users_see_it):
    call, message = WRONG_RECIPES[name]
    with pytest.raises(il.errors.StructureError, match=message):
        call()


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_factored_network_has_no_findings(dtype):
    model = lora(SINE, SINE.init(KEY), 1, matching("*weights"), dtype=dtype)
    recipe = il.recipes.maml(model, mse, 0.01)
    meta = recipe.init_meta(KEY)
    found = il.check(recipe.problem, recipe.adaptation, meta, EPISODES, jax.random.key(3))
    assert not found.findings


# --- check ---------------------------------------------------------------------------------------


def supervised(model, base):
    def loss(params, meta, batch, key):
        outputs = model.apply(lora_merge(base, params), batch.inputs, None, None)
        return jnp.mean((outputs - batch.targets) ** 2)

    return il.Problem(lambda meta, support, key: meta, loss, loss)


SGD = il.GradientDescent(optax.sgd(0.01), 1)


UNCHANGED = il.Procedure(lambda meta, support, key: meta)
"""Pretraining: nothing is adapted."""


def checked(learn, change=lambda factors: factors):
    base = SINE.init(KEY)
    factors = change(lora_factors(base, 1, matching("*weights"), KEY))
    return il.check(supervised(SINE, base), learn, factors, EPISODES, jax.random.key(3))


def zero(findings):
    return [each.place for each in findings.findings if "is zero on every task" in each.problem]


@pytest.mark.parametrize("learn", [SGD, UNCHANGED], ids=["adapted", "not adapted"])
def test_a_factor_of_zeros_is_no_fault(learn):
    assert not checked(learn).findings


def test_two_factors_of_zeros_are_a_fault():
    """Neither has a gradient, so neither ever moves."""
    places = zero(checked(UNCHANGED, lambda factors: jax.tree.map(jnp.zeros_like, factors)))
    assert len(places) == 4


def test_a_zero_gradient_behind_a_dead_unit_is_a_fault_beside_factors_of_zeros():
    def outer(params, meta, batch, key):
        change = params["a"] @ params["b"]
        dead = jax.nn.relu(params["bias"] - 1e3)
        return jnp.mean((batch.inputs @ change - batch.targets + dead) ** 2)

    meta = {"a": jnp.ones((1, 1)), "b": jnp.zeros((1, 1)), "bias": jnp.ones(())}
    problem = il.Problem(None, None, outer)
    found = il.check(problem, UNCHANGED, meta, EPISODES, jax.random.key(3))
    assert zero(found) == ["meta['bias']"]
