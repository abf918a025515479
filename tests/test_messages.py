"""What is wrong is refused by its name: failures of a user's functions, parts that are swapped."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
from reader import loss, reader, train

import innerloop as il
from innerloop.checks import explained

pytestmark = pytest.mark.usefixtures("as_users_see_it")

NAMED = reader()
KEY, META, EPISODE, EPISODES = (NAMED[name] for name in ("key", "meta", "episode", "episodes"))
PROBLEM, LEARN, TASKS = NAMED["problem"], NAMED["adaptation"], NAMED["distribution"]
VALUE_AND_GRAD = il.meta_value_and_grad(PROBLEM, LEARN)
INIT, RECIPE, ESTIMATOR = NAMED["init"], NAMED["recipe"], NAMED["estimator"]


def broken(*given):
    """A function of the user's."""
    raise ValueError("no\n  such thing.")


def reraise(error):
    """A function that raises what it is given."""
    raise error


def traced(problem=PROBLEM, learn=LEARN, gradient=None, meta=META, episodes=EPISODES, key=KEY):
    """The meta-gradient of a batch, traced."""
    return eqx.filter_eval_shape(
        il.meta_value_and_grad(problem, learn, gradient), meta, episodes, key
    )


def stepped(tasks=TASKS, problem=PROBLEM, **options):
    """An outer step, traced."""
    estimator = il.WholeTasks(problem, LEARN, il.Unroll(), tasks, batch=2, **options)
    return jax.eval_shape(lambda: estimator.step(META, (), None, KEY, jnp.int32(0)))


def with_aux(aux):
    return il.Problem(INIT, loss, lambda *given: (loss(*given), aux))


class Sampler:
    """A task distribution of the user's."""

    def sample(self, key, n):
        return broken(key, n)


FEATURES = lambda meta, batch, key: batch.inputs
IMAGES = il.tasks.ClassificationTasks(np.zeros((2, 4, 8, 8), np.uint8), 2, 1, 1)
# A function that raises, by the name that the error has for it.
FUNCTIONS = {
    "init": lambda: traced(il.Problem(broken, loss, loss)),
    "inner_loss": lambda: traced(il.Problem(INIT, broken, loss)),
    "outer_loss": lambda: traced(il.Problem(INIT, loss, broken)),
    "step_weights": lambda: traced(il.Problem(INIT, loss, loss, broken)),
    "where": lambda: traced(gradient=il.FirstOrder(broken)),
    "fn": lambda: traced(learn=il.Procedure(broken)),
    "the optimizer": lambda: traced(learn=il.GradientDescent(lambda meta: broken(), 2)),
    "the optimizer (its mask)": lambda: traced(
        learn=il.GradientDescent(optax.masked(optax.sgd(0.1), broken), 2)
    ),
    "the condition": lambda: traced(gradient=il.Implicit(condition=broken)),
    "strength": lambda: traced(il.gradients.proximal(PROBLEM, lambda meta: broken())),
    "features": lambda: traced(learn=il.heads.RidgeHead(broken, 1.0)),
    "strength of a head": lambda: traced(learn=il.heads.RidgeHead(FEATURES, lambda meta: broken())),
    "sample_one": lambda: stepped(il.tasks.IndependentTasks(broken)),
    "Sampler.sample": lambda: stepped(Sampler()),
    "augment": lambda: stepped(il.tasks.Augmented(IMAGES, broken)),
    "schedule": lambda: stepped(schedule=broken),
    "init_meta": lambda: train(ESTIMATOR, broken),
    "predict": lambda: il.evaluate(
        il.Learner(PROBLEM, LEARN, broken), META, EPISODES, KEY, calibration=True
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_failure_of_a_users_function_says_what_it_was_given(name):
    with pytest.raises(il.errors.StructureError) as caught:
        FUNCTIONS[name]()
    error = caught.value
    begin = name.partition(" of ")[0].partition(" (")[0]
    assert error.problem == f"{begin} failed on what it was given: ValueError: no such thing"
    assert "=" in error.got
    assert error.write is None or name.startswith("the optimizer")
    assert isinstance(error.__cause__, ValueError)


def test_errors_of_jax_and_of_the_library_are_left_as_they_are():
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.eval_shape(explained("f", lambda x: bool(x), "x"), 1.0)
    own = il.errors.DataError("mine", got="", expected="")
    for error in (own, KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            explained("f", partial(reraise, error))()
        assert caught.value is error


REFUSED = {
    # what functions return
    "weights that are text": (
        lambda: traced(il.Problem(INIT, loss, loss, lambda steps: "a")),
        "step_weights failed.*steps=2",
    ),
    "where that is text": (
        lambda: traced(gradient=il.FirstOrder(lambda t, params: "a")),
        "where must say",
    ),
    "no schedule": (lambda: stepped(schedule=lambda step: None), "schedule must return.*None"),
    "a swapped schedule": (
        lambda: stepped(schedule=lambda step: (LEARN, PROBLEM)),
        "schedule must return",
    ),
    "tasks that are no episodes": (
        lambda: stepped(il.tasks.IndependentTasks(lambda key: {"x": jnp.ones(2)})),
        r"a task comes as an Episode.*\{'x'",
    ),
    "aux that is text": (lambda: traced(with_aux("text")), "aux of outer_loss holds a leaf"),
    "aux with a function": (lambda: traced(with_aux({"f": jnp.sin})), "aux of outer_loss holds"),
    "aux with keys of two types": (
        lambda: traced(with_aux({"a": 1.0, 3: 2.0})),
        "aux of outer_loss has a dictionary.*keys of one type",
    ),
    "parameters with keys of two types": (
        lambda: traced(il.Problem(lambda *given: {"a": META["w"], 3: META["w"]}, loss, loss)),
        "what init returns has a dictionary",
    ),
    # meta
    "meta with keys of two types": (
        lambda: VALUE_AND_GRAD(META | {3: 1.0}, EPISODES, KEY),
        "meta has a dictionary",
    ),
    "the same in fit": (lambda: train(ESTIMATOR, META | {3: 1.0}), "fit has a dictionary"),
    "a bare array of whole numbers": (lambda: traced(meta=jnp.arange(2)), "^meta is not a float"),
    "complex meta": (lambda: traced(meta=jnp.ones(2, complex)), "^meta is not a float.*c64"),
    "a part of whole numbers": (lambda: traced(meta={"w": np.arange(2)}), r"^meta\['w'\] is not"),
    "the same part in fit": (
        lambda: train(ESTIMATOR, lambda key: {"w": np.arange(2)}),
        r"^meta\['w'\] is not a floating-point array",
    ),
    "no meta in fit": (lambda: train(ESTIMATOR, "text"), "^meta is not.*'text'"),
    # keys
    "a number as the key of tasks": (
        lambda: il.tasks.SinusoidTasks(5, 5).sample(0, 2),
        "key must be a random key",
    ),
    "a number as the key of a model": (
        lambda: il.models.mlp([1, 4, 1]).init(0),
        "key must be a random key",
    ),
    "several keys": (
        lambda: il.models.conv4(5).init(jax.random.split(KEY)),
        "key must be a random key",
    ),
    # paths
    "no folder": (lambda: il.training.Checkpoints(None), "folder must be a path.*'run'"),
    "no log": (lambda: il.logging.JsonLines(None), "path must be a path"),
    "no optimizer file": (lambda: il.optimizers.load_optimizer(5), "path must be a path"),
    "no images": (lambda: il.tasks.image_folder(None, 28), "folder must be a path"),
    # functions and flags that are none
    "a report of nothing": (lambda: train(ESTIMATOR, report=lambda: 0), "report must be a func"),
    "predictions": (lambda: il.Learner(PROBLEM, LEARN, 5), "predict must be a function"),
    "a task": (lambda: il.tasks.IndependentTasks(5), "sample_one must be a function"),
    "an augmentation": (lambda: il.tasks.Augmented(IMAGES, 5), "augment must be a function"),
    "draws": (lambda: il.tasks.StreamedTasks(5), "draw must be a function"),
    "a check in words": (lambda: train(ESTIMATOR, check="yes"), "check must be True or False"),
    "a flag": (
        lambda: il.Minimise(optimistix.BFGS(1e-3, 1e-3), throw=5),
        "throw must be True or False",
    ),
    # parts in each other's place
    "a problem that is an adaptation": (
        lambda: il.adapt(LEARN, PROBLEM, META, EPISODE.support, KEY),
        "problem must be a Problem.*adapt",
    ),
    "the same in plan": (
        lambda: il.plan(LEARN, PROBLEM, META, EPISODES, "1MiB"),
        "problem must be a Problem.*plan",
    ),
    "a learner as the problem": (
        lambda: il.meta_objective(il.Learner(PROBLEM, LEARN), LEARN),
        "problem=learner.problem",
    ),
    "a recipe in fit": (lambda: train(RECIPE), "Recipe.*estimator=recipe.estimator\\(tasks, b"),
    "a recipe in evaluate": (
        lambda: il.evaluate(RECIPE, META, EPISODES, KEY),
        "Recipe.*learner=recipe.learner",
    ),
    "a problem in evaluate": (
        lambda: il.evaluate(PROBLEM, META, EPISODES, KEY),
        "learner must be a Learner",
    ),
    "a problem in fit": (lambda: train(PROBLEM), "estimator must be an estimator"),
    "tasks to validate on": (
        lambda: il.Validation(TASKS, 1),
        "episodes must be a batch.*evaluation_episodes",
    ),
    "a list of episodes": (
        lambda: traced(episodes=[EPISODE, EPISODE]),
        "a task comes as an Episode.*numpy.stack",
    ),
    "a swapped mixture": (
        lambda: il.estimators.WeightedSum((3.0, ESTIMATOR)),
        r"pairs \(estimator, weight\)",
    ),
    # inputs of networks
    "a dictionary of inputs": (
        lambda: il.models.mlp([1, 4, 1]).apply(
            il.models.mlp([1, 4, 1]).init(KEY), {"x": jnp.ones((3, 1))}, None, None
        ),
        "the inputs of a network must be one array",
    ),
    # where nothing has a value
    "fit under vmap": (
        lambda: jax.vmap(lambda key: train(ESTIMATOR, key=key).meta)(jax.random.split(KEY)),
        "fit runs on the host",
    ),
    "evaluate under jit": (
        lambda: jax.jit(lambda m: il.evaluate(il.Learner(PROBLEM, LEARN), m, EPISODES, KEY).mean)(
            META
        ),
        "evaluate runs on the host",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_is_refused_by_its_name(call, message):
    with pytest.raises(il.errors.StructureError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


NO_CURE = {
    "a model of other widths": lambda: il.models.mlp([4, 8, 1]).apply(
        il.models.mlp([4, 8, 1]).init(KEY), jnp.ones(4), None, None
    ),
    "one image": lambda: il.models.conv4(5).apply(
        il.models.conv4(5).init(KEY), jnp.ones((28, 28, 1)), None, None
    ),
    "labels of several classes": lambda: il.models.cross_entropy(
        jnp.ones((3, 4)), il.Examples(jnp.ones((3, 2)), jnp.ones((3, 4)))
    ),
    "vectors in place of images": lambda: il.tasks.images_by_label(
        np.ones((6, 3)), np.arange(6) % 2
    ),
    "one example": lambda: il.tasks.ClassificationTasks(np.zeros((5, 1, 8, 8), np.uint8), 5, 1, 1),
    "an array as a task": lambda: traced(episodes=jnp.ones(3)),
    "rows of another number": lambda: traced(
        episodes=il.Episode({"x": jnp.ones(3)}, {"x": jnp.ones(4)})
    ),
}


@pytest.mark.parametrize("name", NO_CURE)
def test_where_several_things_may_be_meant_no_cure_is_offered(name):
    with pytest.raises(il.errors.InnerloopError) as caught:
        NO_CURE[name]()
    assert caught.value.write is None
    assert "Write" not in str(caught.value)


def test_numpys_flags_are_flags():
    learn = il.Minimise(optimistix.BFGS(1e-3, 1e-3), throw=np.bool_(False))
    assert learn.throw is False
    assert il.Implicit(throw=np.bool_(False)).throw is False
    evaluation = il.evaluate(
        il.Learner(PROBLEM, LEARN), META, EPISODES, KEY, calibration=np.bool_(False)
    )
    assert evaluation.ece is None
