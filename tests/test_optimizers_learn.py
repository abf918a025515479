"""Learned optimizers improve by meta-training, on the digits and within seconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il

STEPS = 10
ADAM = functools.partial(optax.scale_by_adam, eps_root=1e-16)


@pytest.fixture(scope="module")
def digits():
    """Training a network on 60 random digits, the loss on 60 others, and its new tasks."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(labels)

    def sample_one(key):
        rows = jax.random.permutation(key, len(labels))[:120]
        examples = lambda rows: il.Examples(inputs[rows], targets[rows])
        return il.Episode(examples(rows[:60]), examples(rows[60:]))

    model = il.models.mlp([64, 16, 10])
    loss = il.models.supervised_loss(model, il.models.cross_entropy)
    problem = il.Problem(lambda meta, support, key: model.init(key), loss, loss)
    return problem, il.tasks.IndependentTasks(sample_one), model.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("learned", "rate"),
    [
        (il.optimizers.ParameterRates(ADAM, 0.003), 0.1),
        pytest.param(il.optimizers.SmallMLP(), 0.01, marks=pytest.mark.full),
        pytest.param(
            *(il.optimizers.AdamController(STEPS, rate=0.003), 0.01), marks=pytest.mark.full
        ),
    ],
    ids=["parameter-rates", "small-mlp", "adam-controller"],
)
def test_meta_training_makes_it_better_on_new_tasks(learned, rate, digits):
    problem, tasks, params = digits
    learn = il.GradientDescent(learned, STEPS)
    init_meta = lambda key: learned.init(key, params)
    whole = il.WholeTasks(problem, learn, il.Unroll(), tasks, batch=2)
    trained = il.fit(
        *(whole, init_meta), optimizer=optax.adam(rate), steps=30, key=jax.random.key(0)
    )
    episodes = il.tasks.evaluation_episodes(tasks, 20, seed=0)
    learner = il.Learner(problem, learn)
    losses = lambda meta: il.evaluate(learner, meta, episodes, jax.random.key(1))
    before, after = losses(init_meta(jax.random.key(0))), losses(trained.meta)
    gain = before.mean["loss"][-1] - after.mean["loss"][-1]
    assert gain > 1.5 * (before.interval["loss"][-1] + after.interval["loss"][-1])
    assert np.isfinite(after.mean["loss"][-1])
