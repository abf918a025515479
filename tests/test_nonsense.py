"""What once gave zeros or other nonsense without a word: it is refused, or NaN."""

import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.gradients import Neumann, proximal
from innerloop.training.signals import signals_deferred

pytestmark = pytest.mark.usefixtures("as_users_see_it")

KEY, META = jax.random.key(0), {"w": jnp.ones(3), "b": jnp.zeros(2)}


def loss(params, meta, batch, key):
    return jnp.mean((params["w"] - batch) ** 2)


PROBLEM = il.Problem(lambda meta, support, key: meta, loss, loss)
EPISODES = il.Episode(jnp.zeros((4, 3)), jnp.zeros((4, 3)))
SINES = il.tasks.SinusoidTasks(2, 2)


class Three:
    def sample(self, key, n):
        return il.Episode(jnp.zeros((3, 3)), jnp.zeros((3, 3)))


def learner(steps):
    return il.GradientDescent(optax.sgd(0.1), steps)


def of_a_rate(rate):
    learn = il.GradientDescent(optax.sgd(rate), 2)
    return il.meta_value_and_grad(PROBLEM, learn)(META, EPISODES, KEY)


def planned(steps=2, **options):
    return il.plan(PROBLEM, learner(steps), META, EPISODES, "1MiB", **options)


def whole(tasks):
    return il.WholeTasks(PROBLEM, learner(1), il.Unroll(), tasks, batch=2)


def trained(tasks, **options):
    return il.fit(whole(tasks), META, optimizer=optax.sgd(0.1), steps=1, key=KEY, **options)


REFUSED = {
    "a series with rate 0": (lambda: Neumann(5, rate=0.0), "rate must be"),
    "a series with a negative rate": (lambda: Neumann(5, rate=-1.0), "rate must be"),
    "a pull of 0": (lambda: proximal(PROBLEM, 0.0), "strength must be"),
    "a negative pull": (lambda: proximal(PROBLEM, -1.0), "strength must be"),
    "a pull of NaN": (lambda: proximal(PROBLEM, float("nan")), "strength must be"),
    "a complex rate": (lambda: of_a_rate(0.1 + 0.1j), "complex updates of real parameters"),
    "a leaf twice": (lambda: il.subset(META, lambda m: (m, m["w"])), "selects a leaf twice"),
    "a seed that wraps": (lambda: il.tasks.evaluation_episodes(SINES, 2, 2**32), "seed must be"),
    "another number of tasks": (lambda: trained(Three()), "3 tasks from Three"),
    "no meta-parameters": (
        lambda: il.fit(whole(SINES), None, optimizer=optax.sgd(0.1), steps=1, key=KEY),
        "meta is empty, so there is nothing to train.*init_meta=None",
    ),
    "no candidates": (lambda: planned(gradients=[]), "gradients must be"),
    "nothing biased": (
        lambda: planned(allow=("biased",), steps=0),
        "no meta-gradient of the allowed",
    ),
    "a distribution in place of tasks": (
        lambda: il.evaluate(il.Learner(PROBLEM, learner(1)), META, SINES, KEY),
        r"a task comes as an Episode.*evaluation_episodes\(",
    ),
    "whole numbers as meta": (
        lambda: il.evaluate(il.Learner(PROBLEM, learner(1)), {"w": 1}, EPISODES, KEY),
        r"meta\['w'\] is not a floating-point array",
    ),
    "a time that is no number": (lambda: trained(SINES, minutes=float("nan")), "minutes must be"),
    "a time that is text": (lambda: trained(Three(), minutes="5"), "minutes must be.*minutes=10"),
    "parts in the wrong order": (
        lambda: il.Learner(il.GradientDescent(optax.sgd(0.1), 1), PROBLEM),
        "problem must be a Problem",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_is_refused(call, message):
    with pytest.raises(il.errors.StructureError, match=message) as caught:
        call()
    assert "Expected: " in str(caught.value)


@pytest.mark.parametrize("several", [EPISODES, [EPISODES, EPISODES]], ids=["batch", "list"])
def test_a_fixed_set_of_tasks_is_no_distribution_until_it_is_drawn_from(several):
    """The names of the cure are those of the reader's arguments."""
    with pytest.raises(
        il.errors.StructureError, match="tasks must be a task distribution"
    ) as caught:
        whole(several)
    cure = caught.value.write.partition("tasks=")[2].removesuffix(")")
    numbered = jnp.tile(jnp.arange(4.0)[:, None], 3)
    batch = il.Episode(numbered, numbered)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(4)]
    given = each if isinstance(several, list) else batch
    drawn = eval(cure, {"tasks": il.tasks, "jax": jax, "episodes": given}).sample(KEY, 50)
    np.testing.assert_array_equal(drawn.support, drawn.query)
    assert set(np.asarray(drawn.support)[:, 0].tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_what_is_nearly_refused_is_not():
    for strength in (lambda meta: 1.0, jnp.array(0.5), np.float32(0.5), np.array(0.5, np.float32)):
        assert proximal(PROBLEM, strength)
    part, merge = il.subset(META, lambda meta: (meta["w"], meta["b"]))
    jax.tree.map(np.testing.assert_array_equal, merge(part), META)
    seeds = [il.tasks.evaluation_episodes(SINES, 2, seed) for seed in (0, 2**32 - 1)]
    assert not np.array_equal(*(each.support.inputs for each in seeds))


GRADIENTS = [il.Unroll(), il.FirstOrder(), il.Implicit(), il.Reptile(), il.ForwardMode()]


@pytest.mark.parametrize("part", ["support", "query"])
@pytest.mark.parametrize("gradient", [*GRADIENTS, il.EvolutionStrategies(2, 0.1), None], ids=str)
def test_a_set_without_rows_is_refused(part, gradient):
    """Its mean would be NaN. None stands for an evaluation."""
    sets = {"support": jnp.zeros((4, 3)), "query": jnp.zeros((4, 3)), part: jnp.zeros((4, 0))}

    def value():
        if gradient is None:
            return il.evaluate(il.Learner(PROBLEM, learner(1)), META, il.Episode(**sets), KEY)
        f = il.meta_value_and_grad(PROBLEM, learner(1), gradient)
        return jax.eval_shape(f, META, il.Episode(**sets), KEY)

    with pytest.raises(il.errors.StructureError, match=f"the {part} set is empty"):
        value()


@pytest.mark.parametrize("sigma", [1e-12, 1e-3])
def test_a_perturbation_below_the_precision_gives_nan_and_not_zero(sigma):
    learn = il.GradientDescent(optax.sgd(0.1), 1)
    meta = {"w": jnp.ones(3), "b": jnp.ones(2)}
    gradient = il.EvolutionStrategies(2, sigma)
    _, grads = il.meta_value_and_grad(PROBLEM, learn, gradient)(meta, EPISODES, KEY)
    assert np.all(np.isnan(grads["w"])) == (sigma < 1e-7)
    one = jax.tree.map(lambda leaf: leaf[0], EPISODES)
    parts = (PROBLEM, learn, il.tasks.IndependentTasks(lambda key: one))
    sizes = {"window": 1, "horizon": 2, "batch": 2, "pairs": 2}
    runs = il.estimators.PersistentES(*parts, **sizes, sigma=sigma)
    estimate, _ = runs.step(meta, runs.init(meta, KEY), None, KEY, jnp.int32(0))
    assert np.isfinite(estimate.loss) == (sigma > 1e-7)


@pytest.mark.parametrize(
    "gradient", [il.Unroll(), il.Implicit(), il.EvolutionStrategies(2, 0.1)], ids=str
)
def test_an_empty_meta_has_a_value(gradient):
    problem = il.Problem(lambda meta, support, key: {"w": jnp.ones(3)}, loss, loss)
    objective = il.meta_objective(problem, learner(2), gradient)
    value, _ = objective({}, il.Episode(jnp.zeros(3), jnp.zeros(3)), KEY)
    assert 0 < value < 1


def test_numpys_numbers_are_numbers(tmp_path):
    """In fields, in arguments that become static, and in what is written as JSON."""
    learn = il.GradientDescent(optax.sgd(0.1), np.int64(2))
    assert type(learn.steps) is int
    of_learner = il.Learner(PROBLEM, learn)
    evaluation = il.evaluate(of_learner, META, EPISODES, KEY, steps=np.int64(2), chunk=np.int64(2))
    assert len(evaluation.mean["loss"]) == 3
    one = il.Episode(jnp.zeros(3), jnp.zeros(3))
    estimator = il.WholeTasks(
        PROBLEM, learn, il.Unroll(), il.tasks.IndependentTasks(lambda key: one), np.int64(2)
    )
    outcome = il.fit(
        estimator,
        META,
        optimizer=optax.sgd(0.1),
        steps=np.int64(2),
        key=KEY,
        per_call=np.int64(1),
        averaging=np.float32(0.5),
        minutes=np.float32(5),
        validation=il.Validation(EPISODES, np.int64(1), steps=np.int64(1), weight=np.float32(1)),
        checkpoints=il.training.Checkpoints(tmp_path, every=1),
    )
    assert outcome.step == 2


def test_a_network_as_meta_is_not_called():
    """It is callable, and it is no function of a key."""

    class Network(eqx.Module):
        w: jax.Array

        def __call__(self, inputs):
            raise AssertionError("called")

    of_network = lambda params, meta, batch, key: jnp.mean((params.w - batch) ** 2)
    problem = il.Problem(lambda meta, support, key: meta, of_network, of_network)
    one = il.tasks.IndependentTasks(lambda key: il.Episode(jnp.zeros(3), jnp.zeros(3)))
    estimator = il.WholeTasks(problem, learner(1), il.Unroll(), one, batch=2)
    outcome = il.fit(estimator, Network(jnp.ones(3)), optimizer=optax.sgd(0.1), steps=1, key=KEY)
    assert isinstance(outcome.meta, Network)


def test_a_field_called_key_does_not_hide_the_runs_own(tmp_path):
    """A run that is resumed with another key is another run, whatever the fields are called."""

    class Keyed(il.extend.Estimator):
        key: int = 3

        def init(self, meta, key, outer_step=0):
            return ()

        def step(self, meta, state, data, key, outer_step):
            return il.extend.Estimate(jnp.float32(1), meta, {}), state

        def fidelity(self):
            return il.extend.Fidelity("exact", "Nothing is dropped.")

    saved = il.training.Checkpoints(tmp_path, every=1)
    options = {"optimizer": optax.sgd(0.1), "steps": 2, "checkpoints": saved}
    il.fit(Keyed(), META, key=KEY, **options)
    with pytest.raises(il.errors.RunError, match="key"):
        il.fit(Keyed(), META, key=jax.random.key(1), resume=True, **options)


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    """`getsignal` gives None for it, which cannot be set again."""
    before = signal.getsignal(signal.SIGTERM)
    found = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGTERM else found(n))
    with signals_deferred():
        assert found(signal.SIGTERM) is before
