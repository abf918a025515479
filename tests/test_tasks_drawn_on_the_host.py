"""Numbers that are drawn on the host while a program is traced: refused, whatever draws them."""

import functools
import random

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from points import POINTS, point_loss, point_recipe
from quick import without

import innerloop as il
from innerloop.programs import difference_between_traces
from innerloop.tasks.base import tasks_of_any_key

KEY = jax.random.key(0)
NUMPY = np.random.default_rng(0)


def episode(point):
    return il.Episode(point, point)


def point(key):
    return jax.random.normal(key, (2,))


@jax.jit
def _jitted(key):
    return point(key) + jnp.asarray(NUMPY.normal(size=2), jnp.float32)


def _rolled(key):
    """What the host draws is a parameter of an operation, and no constant."""
    start = random.randrange(1000)
    return jax.lax.slice(jnp.repeat(point(key), 1000), (start,), (start + 2,))


def _wired(key):
    """What the host draws is which value is read."""
    values = list(jax.random.normal(key, (12, 2)))
    random.shuffle(values)
    return values[0] - values[1]


def _called(call):
    like = jax.ShapeDtypeStruct((2,), jnp.float32)
    return lambda key: jax.pure_callback(call(), like, point(key), vmap_method="sequential")


def _in_a_closure():
    number = np.float32(NUMPY.normal())
    return lambda x: x * number


def _in_a_loop(key):
    move = lambda x, _: (x + jnp.asarray(NUMPY.normal(size=2), jnp.float32), None)
    return jax.lax.scan(move, point(key), None, length=2)[0]


_LOADER = iter(range(10**9))
HOST = {
    "numpy": lambda key: point(key) * np.float32(NUMPY.normal()),
    "random": lambda key: point(key) * jnp.float32(random.random()),
    "the whole task": lambda key: jnp.asarray(NUMPY.normal(size=2), jnp.float32),
    "a loader": lambda key: point(key) + jnp.float32(next(_LOADER)),
    "a loader that ends": lambda key, one=iter([1.0]): point(key) + jnp.float32(next(one)),
    "a seed": lambda key: point(jax.random.key(random.randrange(10**9))),
    "a jitted function": _jitted,
    "a static number": _rolled,
    "an order": _wired,
    "a loop": _in_a_loop,
    "a callback's closure": _called(_in_a_closure),
    "a callback's argument": _called(lambda: functools.partial(np.multiply, NUMPY.normal(size=2))),
    "a callback's default": _called(lambda: lambda x, by=[NUMPY.normal(size=2)]: x * by[0]),
    "the module of NumPy": lambda key: point(key) * np.random.uniform(0.5, 1.5),  # noqa: NPY002
}


@pytest.mark.parametrize("name", HOST)
def test_every_draw_on_the_host_is_found(name):
    """Also inside a function that JAX has traced before."""
    draw = HOST[name]
    if name != "a loader that ends":
        jax.jit(draw).lower(KEY)
    assert difference_between_traces(draw, KEY) is not None


def _recursive():
    def call(x, times=3):
        return call(x, times - 1) if times else x

    return call


PURE = {
    "a key": point,
    "constants of the host": lambda key: point(key) * np.float32([1, 2]),
    "a jitted function": jax.jit(point),
    "a callback": lambda key: jax.pure_callback(
        lambda x: x, jax.ShapeDtypeStruct((2,), jnp.float32), point(key), vmap_method="sequential"
    ),
    "a callback's closure": _called(lambda two=np.float32(2): lambda x: two * NUMPY.normal() * x),
    "a callback that calls itself": _called(_recursive),
    "a loop": lambda key: jax.lax.scan(lambda x, _: (x * 2, None), point(key), None, length=3)[0],
    "an error of Equinox": lambda key: eqx.error_if(point(key), point(key)[0] > 99, "too large"),
    "a key of its own": lambda key: point(jax.random.fold_in(jax.random.key(3), 1)) + point(key),
}


def test_an_error_that_was_traced_elsewhere_is_let_pass():
    """The lines that led to it differ in number, because JAX has kept the first trace."""
    fails = jax.jit(lambda key: eqx.error_if(point(key), point(key)[0] > 99, "too large"))
    (lambda key: fails.lower(key))(KEY)
    assert difference_between_traces(lambda key: fails(key), KEY) is None
    assert difference_between_traces(lambda key: jax.jit(fails)(key), KEY) is None


@pytest.mark.parametrize("name", PURE)
def test_a_function_of_the_key_is_let_pass(name):
    assert difference_between_traces(PURE[name], KEY) is None
    assert difference_between_traces(jax.vmap(PURE[name]), jax.random.split(KEY, 2)) is None


# --- wherever tasks are drawn ---------------------------------------------------------------------


class Positioned:
    """A loader: its position is on the object."""

    def __init__(self):
        self.position = 0

    def sample(self, key, n):
        self.position += 1
        return episode(jnp.full((n, 2), self.position, jnp.float32))


INDEPENDENT = il.tasks.IndependentTasks(lambda key: episode(HOST["numpy"](key)))
IMAGES = il.tasks.ClassificationTasks(np.zeros((2, 2, 4, 4), np.uint8), 2, 1, 1)
AUGMENTED = il.tasks.Augmented(IMAGES, lambda key, images: images * np.float32(NUMPY.uniform()))


OPTIONS = {"optimizer": optax.sgd(0.1), "steps": 1, "key": KEY}


def trained(tasks, **options):
    return il.fit(
        point_recipe().estimator(tasks, 2), point_recipe().init_meta, **OPTIONS, **options
    )


def windowed(tasks):
    problem, adaptation, *_ = point_recipe()
    runs = il.estimators.TruncatedUnroll(problem, adaptation, tasks, window=1, horizon=2, batch=2)
    return il.fit(runs, point_recipe().init_meta, **OPTIONS)


DRAWN = {
    "fit": trained,
    "fit with a budget": lambda tasks: trained(tasks, memory="1GiB"),
    "windows": windowed,
    "evaluation sets": lambda tasks: il.tasks.evaluation_episodes(tasks, 2, seed=0),
}


@pytest.mark.parametrize("tasks", [INDEPENDENT, Positioned()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("where", without({"fit with a budget"}, DRAWN))
def test_such_tasks_are_refused_wherever_they_are_drawn(where, tasks):
    with pytest.raises(il.errors.StructureError, match="drawn on the host") as raised:
        DRAWN[where](tasks)
    assert type(tasks).__name__ in raised.value.got
    assert "test_tasks_drawn_on_the_host.py" in raised.value.got


def test_single_tasks_and_augmentations_are_refused_too():
    """In Python and in a compiled function."""
    for tasks in (INDEPENDENT, AUGMENTED):
        with pytest.raises(il.errors.StructureError, match="drawn on the host"):
            tasks.sample(KEY, 2)
        with pytest.raises(il.errors.StructureError, match="drawn on the host"):
            jax.jit(lambda key, tasks=tasks: tasks.sample(key, 2)).lower(KEY)


def test_the_cures_work():
    """Two keys give two tasks, and the host's tasks are drawn ahead."""
    cured = il.tasks.IndependentTasks(lambda key: episode(point(key) * jax.random.normal(key)))
    one, other = (cured.sample(key, 1).support for key in jax.random.split(KEY))
    assert not np.array_equal(one, other)
    trained(cured)
    pytest.importorskip("grain")
    host = lambda rng: episode(rng.normal(size=2).astype(np.float32))
    streamed = il.tasks.StreamedTasks(host)
    one, other = (streamed.sample(key, 1).support for key in jax.random.split(KEY))
    assert not np.array_equal(one, other)
    trained(streamed)


def test_a_source_that_the_run_reads_is_not_moved():
    """A callback is not called to find this out."""
    calls = []

    def host(x):
        calls.append(x)
        return x

    def sample_one(key):
        like = jax.ShapeDtypeStruct((2,), jnp.float32)
        return episode(jax.pure_callback(host, like, point(key), vmap_method="sequential"))

    tasks = il.tasks.IndependentTasks(sample_one)
    jax.jit(lambda key: tasks.sample(key, 2)).lower(KEY)
    assert calls == []
    tasks.sample(KEY, 2)
    assert len(calls) == 2


class Seeded:
    """A generator that is made anew, or from the value of the key."""

    def __init__(self, of_key):
        self.of_key = of_key

    def sample(self, key, n):
        seed = int(jax.random.key_data(key)[-1]) if self.of_key else 0
        points = jnp.asarray(np.random.default_rng(seed).normal(size=(n, 2)), jnp.float32)
        return il.Episode(points, points + 0.1)


def test_the_same_tasks_in_every_step_are_a_finding():
    """The cures of the finding have a test above."""
    with pytest.warns(UserWarning, match="every outer step has the same tasks.*\n.*Seeded.sample"):
        trained(Seeded(of_key=False), check=True)
    trained(POINTS, check=True)

    def from_a_callback(key):
        like = jax.ShapeDtypeStruct((2,), jnp.float32)
        return episode(jax.pure_callback(lambda: np.float32(NUMPY.normal(size=2)), like))

    assert tasks_of_any_key(il.tasks.IndependentTasks(from_a_callback), 2) == []


@pytest.mark.parametrize("where", without({"fit with a budget"}, DRAWN))
def test_a_seed_from_the_value_of_the_key_is_refused_wherever_tasks_are_drawn(where):
    by_one = il.tasks.IndependentTasks(lambda key: Seeded(of_key=True).sample(key, 1))
    for tasks, name in [(Seeded(of_key=True), "Seeded.sample"), (by_one, "sample_one")]:
        with pytest.raises(il.errors.StructureError, match=f"{name} reads the value") as raised:
            DRAWN[where](tasks)
        assert "test_tasks_drawn_on_the_host.py" in raised.value.got


class More:
    """One task more than it is asked for."""

    def sample(self, key, n):
        return POINTS.sample(key, n + 1)


@pytest.mark.parametrize("where", without({"fit with a budget"}, DRAWN))
def test_another_number_of_tasks_is_refused_wherever_they_are_drawn(where):
    with pytest.raises(il.errors.StructureError, match="different number of tasks"):
        DRAWN[where](More())


# --- in what an outer step does besides ----------------------------------------------------------


def noisy(params, meta, batch, key):
    """A loss that is scaled by a Python number, which is a literal of the program."""
    loss, aux = point_loss(params, meta, batch, key)
    return loss * random.uniform(0.5, 1.5), aux


def shifted(meta, support, key):
    return {"x": meta["x"] + random.uniform(0, 1)}


def descent():
    return il.GradientDescent(lambda meta: optax.sgd(random.random()), 1)


START, (PROBLEM, LEARN, *_) = (lambda meta, support, key: meta), point_recipe()
NOISY = {
    "the inner loss": (il.Problem(START, noisy, point_loss), LEARN),
    "the outer loss": (il.Problem(START, point_loss, noisy), LEARN),
    "init": (il.Problem(shifted, point_loss, point_loss), LEARN),
    "the inner optimizer": (PROBLEM, descent()),
    "a procedure": (il.Problem(None, None, point_loss), il.Procedure(shifted)),
}


@pytest.mark.parametrize("where", NOISY)
def test_a_number_of_the_host_is_refused_in_every_function_of_a_step(where):
    whole = il.WholeTasks(*NOISY[where], il.Unroll(), POINTS, 2)
    with pytest.raises(il.errors.StructureError, match="different program each time") as raised:
        il.fit(whole, point_recipe().init_meta, **OPTIONS)
    place = "transform.py of a library" if "optimizer" in where else "drawn_on_the_host.py:"
    assert place in raised.value.got
    with pytest.raises(il.errors.GradientError, match="different function each time"):
        il.fit(whole, point_recipe().init_meta, check=True, **OPTIONS)


def test_a_number_of_the_host_is_refused_in_windows_and_in_the_outer_optimizer():
    runs = il.estimators.TruncatedUnroll(*NOISY["the outer loss"], POINTS, 1, 2, 2)
    whole = il.WholeTasks(PROBLEM, LEARN, il.Unroll(), POINTS, 2)
    scheduled = optax.sgd(lambda count: 0.1 * random.random())
    for estimator, optimizer in [(runs, optax.sgd(0.1)), (whole, scheduled)]:
        with pytest.raises(il.errors.StructureError, match="different program each time"):
            il.fit(estimator, point_recipe().init_meta, **OPTIONS | {"optimizer": optimizer})
