"""A learned optimizer is saved and loaded with one call each, or an error says what to do."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il

PARAMS = {"weights": jnp.ones((2, 3)), "layers": [jnp.zeros(3), jnp.ones(())]}
ADAM = functools.partial(optax.scale_by_adam, b1=0.8, eps_root=1e-16)


def saved(path, learned, params=PARAMS):
    meta = learned.init(jax.random.key(0), params)
    return il.optimizers.save_optimizer(path, learned, meta), meta


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", il.optimizers.OPTIMIZERS)
def test_what_is_loaded_takes_the_same_steps(kind, tmp_path):
    learned = kind()
    path, meta = saved(tmp_path / "mine.opt", learned)
    again, meta_again = il.optimizers.load_optimizer(path)
    assert again == learned
    assert_same(meta_again, meta)

    def steps(optimizer):
        state, params = optimizer.init(PARAMS), PARAMS
        for i in range(2):
            gradient = jax.tree.map(lambda p, i=i: p + i + 1, params)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    assert_same(steps(again(meta_again)), steps(learned(meta)))


def test_settings_and_containers_are_kept(tmp_path):
    learned = il.optimizers.ParameterRates(ADAM, rate=0.3)
    params = {"pair": (jnp.ones(2), [jnp.ones(1, jnp.bfloat16)])}
    path, meta = saved(tmp_path / "x", learned, params)
    again, meta_again = il.optimizers.load_optimizer(path)
    assert (again.rate, again.direction.func, again.direction.keywords) == (
        0.3,
        optax.scale_by_adam,
        ADAM.keywords,
    )
    assert_same(meta_again, meta)
    assert meta_again["log_rates"]["pair"][1][0].dtype == jnp.bfloat16


def rewritten(path, change):
    """The file with another header."""
    with np.load(path) as content:
        arrays = dict(content)
    header = json.loads(str(arrays.pop("header")))
    change(header)
    with path.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(format=2), "another version.*format 2.*saved by innerloop"),
        (lambda header: header.update(optimizer="Later"), "another version.*Later.*kinds="),
        (
            lambda header: header["settings"].update(warmth=1.0),
            "another version.*warmth",
        ),
        (lambda header: header.update(meta={"dict": {}}), "cannot be read.*StructureError"),
        (lambda header: header["meta"]["dict"]["log_rates"].update(array=9), "cannot be read.*'9'"),
        (lambda header: header.pop("settings"), "cannot be read.*settings"),
        (
            lambda header: header["settings"].update(direction={"optax": "no", "keywords": {}}),
            "cannot be read.*no",
        ),
    ],
)
def test_a_file_of_another_version_says_what_to_do(change, message, tmp_path):
    path, _ = saved(tmp_path / "mine.opt", il.optimizers.ScalarRate())
    with pytest.raises(il.errors.DataError, match=message):
        il.optimizers.load_optimizer(rewritten(path, change))


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_a_damaged_or_missing_file_says_what_to_do(content, tmp_path):
    path = tmp_path / "mine.opt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(il.errors.DataError, match=r"cannot be read.*as save_optimizer writes it"):
        il.optimizers.load_optimizer(path)


def test_a_file_cut_short_says_what_to_do(tmp_path):
    path, _ = saved(tmp_path / "mine.opt", il.optimizers.ParameterRates())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(il.errors.DataError, match="cannot be read"):
        il.optimizers.load_optimizer(path)


def test_meta_of_another_structure_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(
        il.errors.StructureError, match="not the meta-parameters of this ScalarRate"
    ):
        il.optimizers.save_optimizer(
            tmp_path / "x", il.optimizers.ScalarRate(), {"rate": jnp.ones(())}
        )
    assert not list(tmp_path.iterdir())


def test_what_no_file_can_hold_is_refused(tmp_path):
    learned = il.optimizers.ParameterRates(lambda: optax.identity())
    with pytest.raises(il.errors.StructureError, match="setting direction cannot be saved"):
        saved(tmp_path / "x", learned)
    named = il.tasks.SinusoidTasks(2, 2).sample(jax.random.key(0), 1).support
    with pytest.raises(
        il.errors.StructureError, match=r"container that a file cannot hold.*Examples"
    ):
        saved(tmp_path / "x", il.optimizers.ParameterRates(), named)


def test_a_folder_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(il.errors.RunError, match=r"cannot be written.*Write: save_optimizer"):
        saved(tmp_path / "none" / "x", il.optimizers.ScalarRate())


class Halved(il.optimizers.LearnedOptimizer):
    """One of a user's own."""

    def init(self, key, params):
        return jnp.zeros(())

    def __call__(self, meta):
        return optax.scale(-jnp.exp(meta) / 2)


def test_a_class_of_ones_own_is_named_when_it_is_loaded(tmp_path):
    path, meta = saved(tmp_path / "x", Halved())
    with pytest.raises(il.errors.DataError, match="optimizer Halved"):
        il.optimizers.load_optimizer(path)
    learned, again = il.optimizers.load_optimizer(path, kinds=[Halved])
    assert learned == Halved()
    assert_same(again, meta)
