"""Training from trained weights: what is loaded is theirs, bit for bit, the rest is new."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.lab.experiments.digits import Digits
from innerloop.lab.experiments.table import EXPERIMENTS

KEY = jax.random.key(7)
BODY = il.models.mlp([1, 6, 5])
HEAD = il.models.mlp([5, 1])
TASKS = il.tasks.SinusoidTasks(5, 5)


def init_meta(key):
    keys = jax.random.split(key)
    return {"body": BODY.init(keys[0]), "head": HEAD.init(keys[1])}


def loss(params, meta, batch, key):
    features = BODY.apply(meta["body"], batch.inputs, None, None)
    return jnp.mean((HEAD.apply(params, features, None, None) - batch.targets) ** 2)


ANIL = il.recipes.Recipe(
    il.Problem(lambda meta, support, key: meta["head"], loss, loss),
    il.GradientDescent(optax.sgd(0.05), steps=2),
    il.Unroll(),
    init_meta,
)
WEIGHTS = BODY.init(jax.random.key(99))


def body(meta):
    return meta["body"]


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def fitted(recipe, optimizer, steps):
    estimator = recipe.estimator(TASKS, batch=3)
    return il.fit(estimator, recipe.init_meta, optimizer=optimizer, steps=steps, key=KEY).last


@pytest.mark.parametrize("kind", [lambda tree: tree, lambda tree: jax.tree.map(np.asarray, tree)])
def test_the_part_is_the_weights_and_the_rest_is_as_without_them(kind):
    recipe = il.recipes.pretrained(ANIL, kind(WEIGHTS), into=body)
    assert_same(recipe.init_meta(KEY), {"body": WEIGHTS, "head": init_meta(KEY)["head"]})


def test_fit_starts_from_the_weights_and_moves_them():
    recipe = il.recipes.pretrained(ANIL, WEIGHTS, into=body)
    assert_same(fitted(recipe, optax.set_to_zero(), 1)["body"], WEIGHTS)
    moved = fitted(recipe, optax.adam(1e-2), 5)
    for a, b in zip(jax.tree.leaves(moved["body"]), jax.tree.leaves(WEIGHTS), strict=True):
        assert not np.array_equal(a, b)


def test_adaptation_from_the_weights_learns():
    """Fitted weights, then put under a new head: the outer loss after adaptation is theirs."""
    trained = fitted(ANIL, optax.adam(1e-2), 300)
    key = jax.random.key(1)
    episodes = TASKS.sample(key, 200)
    f = jax.jit(il.meta_value_and_grad(ANIL.problem, ANIL.adaptation))
    both = il.recipes.pretrained(
        ANIL, (trained["body"], trained["head"]), lambda m: (m["body"], m["head"])
    )
    (loaded, _), _ = f(both.init_meta(KEY), episodes, key)
    (known, _), _ = f(trained, episodes, key)
    (fresh, _), _ = f(init_meta(KEY), episodes, key)
    assert loaded == known
    assert loaded < 0.9 * fresh


def test_all_of_meta_unless_told_otherwise():
    meta = init_meta(jax.random.key(3))
    assert_same(il.recipes.pretrained(ANIL, meta).init_meta(KEY), meta)


@pytest.mark.parametrize(
    ("weights", "into", "message"),
    [
        (il.models.mlp([1, 7, 5]).init(KEY), body, r"do not fit.*float32\[1, 7\].*float32\[1, 6\]"),
        (jax.tree.map(lambda x: np.asarray(x, np.float64), WEIGHTS), body, "float64.*float32"),
        (il.models.mlp([1, 6]).init(KEY), body, "nothing"),
        (WEIGHTS, lambda meta: meta["tail"], "not in the tree"),
        (WEIGHTS, lambda meta: (), "selects no array"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_leaf(weights, into, message):
    with pytest.raises(il.errors.StructureError, match=message):
        il.recipes.pretrained(ANIL, weights, into=into)


def test_only_the_leaf_that_differs_is_named():
    weights = il.models.mlp([1, 6, 5]).init(KEY)
    leaves, treedef = jax.tree.flatten(weights)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(weights)]
    wrong = jax.tree.unflatten(treedef, [jnp.zeros(9), *leaves[1:]])
    with pytest.raises(il.errors.StructureError) as caught:
        il.recipes.pretrained(ANIL, wrong, into=body)
    assert caught.value.got == f"{names[0]}: float32[9]"
    assert all(name not in str(caught.value) for name in names[1:])


def test_another_container_is_refused():
    recipe = ANIL._replace(init_meta=lambda key: [jnp.zeros(2)])
    with pytest.raises(il.errors.StructureError, match=r"PyTreeDef\(\(\*,\)\)"):
        il.recipes.pretrained(recipe, (jnp.zeros(2),))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_initial_meta_of_an_experiment_needs_no_data(name, tmp_path, monkeypatch):
    monkeypatch.setenv("INNERLOOP_DATA", str(tmp_path / "nowhere"))
    assert jax.tree.leaves(jax.eval_shape(EXPERIMENTS[name]().init_meta, KEY))


def test_an_experiment_trains_its_own_recipe():
    experiment = Digits(filters=4)
    assert_same(experiment.init_meta(KEY), experiment.build_recipe().init_meta(KEY))
