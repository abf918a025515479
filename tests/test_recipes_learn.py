"""Every recipe learns to learn handwritten digits within seconds, from the labels it is given."""

import jax
import numpy as np
import optax
import pytest
from quick import without

import innerloop as il
from innerloop.lab.experiments.few_shot import counted_steps, support_labels_shuffled
from innerloop.lab.experiments.images import SETTINGS

WAYS, SHOTS, TASKS = 5, 3, 60


@pytest.fixture(scope="module")
def splits():
    return il.tasks.digits()


def small_network(classes):
    sizes = [64, 32]
    return il.recipes.Network(
        il.models.mlp([*sizes, WAYS]),
        il.models.mlp_features(sizes),
        sizes[-1],
        WAYS,
        il.models.cross_entropy,
        classes,
    )


@pytest.mark.parametrize(
    "name", without({"logistic_head", "svm_head", "imaml"}, il.recipes.RECIPES)
)
def test_recipe_learns_and_falls_to_chance_with_shuffled_labels(name, splits):
    network = small_network(lambda: len(splits.train))
    recipe = il.recipes.named_recipe(name, network, SETTINGS.get(name, {}))
    tasks = il.tasks.ClassificationTasks(splits.train, WAYS, SHOTS, queries=5)
    if name == "pretrain_finetune":  # of all classes at once
        tasks = il.tasks.LabelledRows(splits.train, rows=40)
    optimizer = optax.adam(1e-3 if name == "imaml" else 1e-2)  # its inner loop diverges at a larger
    estimator, key = recipe.estimator(tasks, batch=4), jax.random.key(0)
    trained = il.fit(estimator, recipe.init_meta, optimizer=optimizer, steps=60, key=key)
    test = il.tasks.ClassificationTasks(splits.test, WAYS, SHOTS, queries=10)
    episodes = il.tasks.evaluation_episodes(test, TASKS, seed=0)
    learner, steps = recipe.learner, counted_steps(recipe.learner, 10)

    def accuracy(episodes):
        key = jax.random.key(2)
        evaluation = il.evaluate(learner, trained.meta, episodes, key, steps=steps)
        return evaluation.mean["accuracy"][-1], evaluation.interval["accuracy"][-1]

    right, interval = accuracy(episodes)
    assert right - interval > 1.5 / WAYS
    chance, interval = accuracy(support_labels_shuffled(episodes, jax.random.key(1)))
    assert np.abs(chance - 1 / WAYS) < 3 * interval
    assert chance + interval < right
