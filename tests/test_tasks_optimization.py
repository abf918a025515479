"""Families of optimization tasks: what is drawn, what is shared, and that they can be optimised."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import without

import innerloop as il

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def families():
    return {
        family.name: family
        for family in il.tasks.optimization.training_families()
        + il.tasks.optimization.held_out_families()
    }


def first(episodes):
    return jax.tree.map(lambda leaf: leaf[0], episodes)


def test_no_held_out_family_is_a_training_family(families):
    assert len(families) == len(il.tasks.optimization.training_families()) + len(
        il.tasks.optimization.held_out_families()
    )


NAMES = [
    "quadratic",
    "noisy-quadratic",
    "digits-linear",
    "wine-linear",
    "digits-16-tanh",
    "digits-32-relu",
    "digits-conv-8x2",
    "text",
    "ill-conditioned-quadratic",
    "breast-cancer-linear",
    "diabetes-16-tanh",
    "digits-64x64-gelu",
    "breast-cancer-32-swish",
    "digits-conv-16x3",
    "other-text",
]


def test_every_family_is_named(families):
    assert sorted(families) == sorted(NAMES)


@pytest.mark.parametrize("name", without({"other-text", "digits-conv-16x3"}, NAMES))
def test_adam_lowers_the_loss_on_new_data(families, name):
    """So the tasks can be learned, and what is learned holds for the query set."""
    family = families[name]
    learn = family.adaptation(optax.adam(0.03), 20)
    episodes = il.tasks.evaluation_episodes(family.tasks, 4, seed=0)
    evaluated = il.evaluate(il.Learner(family.problem, learn), jnp.zeros(()), episodes, KEY)
    losses = evaluated.mean["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]


def test_tasks_differ_in_data_and_initialisation(families):
    for family in (families[name] for name in ("quadratic", "digits-32-relu", "text")):
        one, two = (first(family.tasks.sample(key, 1)) for key in jax.random.split(KEY))
        same = jax.tree.map(lambda a, b: bool((a == b).all()), one, two)
        assert not all(jax.tree.leaves(same)), family.name
        start, other = (family.params(key) for key in jax.random.split(KEY))
        same = jax.tree.map(lambda a, b: bool((a == b).all()), start, other)
        assert not all(jax.tree.leaves(same)), family.name


@pytest.mark.usefixtures("x64")
def test_a_quadratic_has_its_spectrum_and_its_minimum():
    spectrum = [0.1, 1.0, 3.0, 7.0]
    family = il.tasks.optimization.quadratic_family(spectrum, noise=0.5)
    task = first(family.tasks.sample(KEY, 1)).support
    np.testing.assert_allclose(np.linalg.eigvalsh(task["hessian"]), spectrum, rtol=1e-10)
    loss = lambda params: family.problem.outer_loss(params, None, task, KEY)
    np.testing.assert_allclose(loss(task["centre"]), 0, atol=1e-20)
    np.testing.assert_allclose(jax.hessian(loss)(jnp.ones(4)), task["hessian"], rtol=1e-10)
    at = task["centre"] + jnp.array([1.0, -2.0, 0.5, 0.0])
    by_hand = (at - task["centre"]) @ task["hessian"] @ (at - task["centre"]) / 2
    np.testing.assert_allclose(loss(at), by_hand, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_noise_of_a_quadratic_is_that_of_its_gradient():
    family = il.tasks.optimization.quadratic_family(np.ones(3), noise=0.5)
    task = first(family.tasks.sample(KEY, 1)).support
    gradient = jax.grad(lambda p, key: family.problem.inner_loss(p, None, task, key))
    noises = jax.vmap(gradient, (None, 0))(task["centre"], jax.random.split(KEY, 4000))
    assert np.abs(noises.mean(0)).max() < 4 * 0.5 / np.sqrt(4000)
    np.testing.assert_allclose(noises.std(0), 0.5, rtol=0.06)


def test_no_row_is_in_both_sets():
    table = il.tasks.optimization.Table("numbers", np.arange(20.0)[:, None], np.arange(20), 20)
    episode = first(il.tasks.optimization.TableTasks(table, 10).sample(KEY, 1))
    seen = np.concatenate([episode.support.targets, episode.query.targets])
    assert sorted(seen) == list(range(20))
    np.testing.assert_array_equal(episode.support.inputs[:, 0], episode.support.targets)


def test_windows_are_of_the_text_and_queries_of_its_end():
    text = "".join(chr(ord("a") + i % 7) for i in range(80)) + "z" * 20
    episode = first(il.tasks.optimization.TextTasks(text, 30, 5).sample(KEY, 1))
    codes = il.tasks.optimization.tokens(text)
    starts = {tuple(codes[i : i + 6]) for i in range(75)}
    for inputs, targets in zip(episode.support.inputs, episode.support.targets, strict=True):
        assert (*inputs.tolist(), int(targets[-1])) in starts
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
    assert (episode.query.inputs == codes[-1]).all()
    assert (episode.support.inputs != codes[-1]).all()


def test_tokens_are_few():
    codes = il.tasks.optimization.tokens(il.tasks.optimization.descriptions("wine"))
    assert codes.min() >= 0 and len(codes) > 2000
    assert len(set(codes.tolist())) > 25
    assert il.tasks.optimization.tokens("Aa19!").tolist() == [0, 0, 30, 30, 31]


def test_rescaling_changes_the_units_and_nothing_else():
    family = il.tasks.optimization.quadratic_family(np.logspace(-1, 0, 5))
    other = il.tasks.optimization.rescaled(family, 10.0)
    learn = lambda family, rate: family.adaptation(optax.sgd(rate), 5)
    episodes = il.tasks.evaluation_episodes(family.tasks, 3, seed=0)
    losses = lambda family, rate: il.evaluate(
        il.Learner(family.problem, learn(family, rate)), jnp.zeros(()), episodes, KEY
    ).mean["loss"]
    np.testing.assert_allclose(losses(other, 0.5 / 100), losses(family, 0.5), rtol=1e-4)
    assert np.abs(losses(other, 0.5 / 10) / losses(family, 0.5) - 1)[-1] > 0.1


def test_the_initial_scale_is_drawn_within_its_range():
    model = il.models.mlp([4, 3], weights=jax.nn.initializers.ones)
    tasks = il.tasks.SinusoidTasks(2, 2)
    family = il.tasks.optimization.supervised_family(
        "m", model, il.models.mean_squared_error, tasks, scale=(0.5, 2.0)
    )
    drawn = [family.params(key)["head"]["weights"][0, 0] for key in jax.random.split(KEY, 40)]
    assert 0.5 <= min(drawn) < 0.7 and 1.4 < max(drawn) <= 2


def test_random_families_are_those_of_their_seed():
    names = lambda seed: [family.name for family in il.tasks.optimization.random_families(seed, 6)]
    assert names(0) == names(0)
    assert names(0) != names(1)
    assert len(set(names(0))) == 6
    wide = il.tasks.optimization.random_families(
        0, 3, (il.tasks.optimization.wine_table(),), widths=(100, 110), depths=(2, 2)
    )
    for family in wide:
        body = family.params(KEY)["body"]
        assert [100 <= len(layer["bias"]) <= 110 for layer in body] == [True, True]


@pytest.mark.full
def test_several_families_train_one_optimizer():
    """By the mean of what each would make of it."""
    learned = il.optimizers.ScalarRate()
    families = [
        il.tasks.optimization.quadratic_family([0.1, 1.0]),
        il.tasks.optimization.mlp_family(il.tasks.optimization.wine_table()),
    ]
    parts = [
        il.WholeTasks(each.problem, each.adaptation(learned, 3), il.Unroll(), each.tasks, batch=2)
        for each in families
    ]
    meta = learned.init(KEY, families[0].params(KEY))

    def slope(estimator, key):
        data, step = estimator.feed(key, 0, 1), eqx.filter_jit(estimator.step)
        estimate, _ = step(meta, estimator.init(meta, key), data, key, 0)
        return estimate.grads["log_rates"]

    keys = jax.random.split(KEY)
    alone = [slope(part, key) for part, key in zip(parts, keys, strict=True)]
    assert min(np.abs(alone)) > 0
    together = slope(il.estimators.WeightedSum(*((part, 1.0) for part in parts)), KEY)
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: il.tasks.optimization.quadratic_family([]),
            il.errors.StructureError,
            r"spectrum is a list.*logspace",
        ),
        (
            lambda: il.tasks.optimization.quadratic_family([1.0, -1.0]),
            il.errors.StructureError,
            "none negative",
        ),
        (
            lambda: il.tasks.optimization.TableTasks(il.tasks.optimization.wine_table(), 90),
            il.errors.DataError,
            "not enough rows.*rows=90.*at most 89",
        ),
        (
            lambda: il.tasks.optimization.TextTasks("abc" * 10, 4, 16),
            il.errors.DataError,
            "too short.*more than 80",
        ),
        (
            lambda: il.tasks.optimization.random_families(0, 0),
            il.errors.StructureError,
            "count must be",
        ),
        (
            lambda: il.tasks.optimization.rescaled(
                il.tasks.optimization.quadratic_family([1.0]), -1.0
            ),
            il.errors.StructureError,
            "factor must be .* above 0.*Write: rescaled",
        ),
        (
            lambda: il.tasks.optimization.supervised_family(
                "x",
                il.models.mlp([1, 1]),
                il.models.mean_squared_error,
                il.tasks.SinusoidTasks(2, 2),
                scale=(2.0, 1.0),
            ),
            il.errors.StructureError,
            "scale must be a range.*Write: supervised_family",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
