"""The table of recipes: its names, its hyper-parameters, and what it refuses."""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_recipes_by_hand import BY_HAND, FEATURES, LOSS, MODEL, WAYS, WIDTH

import innerloop as il
from innerloop.recipes._maml import annealed_weights
from innerloop.recipes.table import RecipeName, RegressionRecipe, hyper_parameters


def network(classes=lambda: 7):
    return il.recipes.Network(MODEL, FEATURES, WIDTH, WAYS, LOSS, classes)


def test_the_table_and_the_names_are_the_same():
    """The names are the choices of a flag."""
    assert get_args(RecipeName) == tuple(il.recipes.RECIPES)
    assert set(get_args(RegressionRecipe)) < set(il.recipes.RECIPES)
    assert set(BY_HAND) | {"maml", "fomaml", "reptile", "imaml"} == set(il.recipes.RECIPES)


@pytest.mark.parametrize("name", il.recipes.RECIPES)
def test_every_hyper_parameter_has_a_value_and_can_be_given_another(name):
    recipe = il.recipes.named_recipe(name, network())
    assert callable(recipe.predict)
    known = hyper_parameters(name, network())
    if "steps" in known:
        given = il.recipes.named_recipe(name, network(), steps=3)
        # Pretraining takes them at test alone, and Reptile has others there.
        assert 3 in (given.adaptation.steps, given.learner.adaptation.steps)
    defaults = {key: value for key, value in known.items() if key == "rate"}
    assert isinstance(
        il.recipes.named_recipe(name, network(), defaults, steps=None), il.recipes.Recipe
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            partial(il.recipes.named_recipe, "mamil", network()),
            "mamil is no recipe for learning.*maml",
        ),
        (
            partial(il.recipes.named_recipe, "protonet", network(None)),
            "protonet is no recipe for regression.*cnp",
        ),
        (
            partial(il.recipes.named_recipe, "protonet", network(), rate=0.1),
            "protonet has no rate.*no hyper-parameters",
        ),
        (
            partial(il.recipes.named_recipe, "anil", network(), strength=1.0),
            "anil has no strength.*steps",
        ),
        (partial(il.recipes.cavia, MODEL, LOSS), "needs a model with a context.*film"),
        (partial(il.recipes.matching, FEATURES, LOSS, 1), "ways must be .* at least 2"),
        (partial(il.recipes.protonet, FEATURES, LOSS, 1), "ways must be .* at least 2"),
        (partial(il.recipes.r2d2, FEATURES, LOSS, 1), "ways must be .* at least 2"),
        (partial(il.recipes.maml_plus_plus, MODEL, LOSS, 0.1, 0), "steps must be .* at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(il.errors.StructureError, match=message):
        call()


@pytest.mark.parametrize(
    ("steps", "outer_step", "weights"),
    [
        (1, 0, [0, 1]),
        (4, 0, [0, 0.25, 0.25, 0.25, 0.25]),
        (4, 50, [0, 0.125, 0.125, 0.125, 0.625]),
        (4, 100, [0, 0, 0, 0, 1]),
        (4, 1000, [0, 0, 0, 0, 1]),
    ],
)
def test_the_losses_after_each_step_fade_out(steps, outer_step, weights):
    got = annealed_weights(steps, jnp.int32(outer_step), 100)
    np.testing.assert_allclose(got, weights, rtol=1e-6)


def test_the_changes_of_maml_plus_plus_can_be_left_out():
    recipe = il.recipes.maml_plus_plus(MODEL, LOSS, annealed_over=0)
    tasks = il.tasks.SinusoidTasks(2, 2)
    assert recipe.schedule is None
    assert isinstance(recipe.estimator(tasks, 1), il.WholeTasks)
    recipe = il.recipes.maml_plus_plus(MODEL, LOSS, first_order_until=7)
    phases = recipe.estimator(tasks, 1)
    assert (phases.until, phases.first.gradient) == (7, il.FirstOrder())
    assert phases.then.gradient == recipe.gradient


def test_a_class_without_support_rows_is_never_predicted():
    support = il.Examples(jnp.ones((4, 3)), jnp.array([0, 0, 2, 2]))
    query = il.Examples(jnp.ones((5, 3)), jnp.zeros(5, jnp.int32))
    key = jax.random.key(0)
    recipes = (
        il.recipes.protonet(FEATURES, LOSS, 3),
        il.recipes.matching(FEATURES, LOSS, 3),
        il.recipes.nearest_neighbour(LOSS, 3),
    )
    for recipe in recipes:
        meta = recipe.init_meta(key)
        params, _ = il.adapt(recipe.problem, recipe.adaptation, meta, support, key)
        predicted = jax.nn.softmax(recipe.predict(params, meta, query, key), axis=1)
        np.testing.assert_allclose(predicted[:, 1], np.zeros(5), atol=1e-30)
        loss = lambda meta: recipe.problem.outer_loss(params, meta, query, key)[0]  # noqa: B023
        for leaf in jax.tree.leaves(jax.grad(loss)(meta)):
            assert np.all(np.isfinite(leaf))
