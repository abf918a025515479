"""Meta-parameters in a file: what is written is read, and what is another tree is named."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import innerloop as il
from innerloop.errors import RunError, StructureError
from innerloop.lab.run_folder import RunFolder
from innerloop.training import load_meta, save_meta

META = {"body": [jnp.arange(6.0).reshape(2, 3), jnp.ones(2, jnp.bfloat16)], "rate": 0.5}
STATE = {"mean": jnp.zeros(3), "count": jnp.array(7, jnp.int32)}


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == jnp.result_type(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    "tree",
    [META, (META, STATE), (META, None), jnp.ones(3), {}, {"w": np.asfortranarray(np.eye(2, 3))}],
)
def test_what_is_written_is_read(tree, tmp_path):
    path = save_meta(tmp_path / "file", tree)
    assert_same(load_meta(path, tree), tree)
    assert_same(load_meta(str(path), jax.eval_shape(lambda: tree)), tree)


def test_a_network_of_equinox_is_read(tmp_path):
    network = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    path = save_meta(tmp_path / "file", network)
    assert_same(load_meta(path, eqx.nn.Linear(2, 3, key=jax.random.key(1))), network)


def test_the_best_of_a_run_is_read_and_so_are_files_by_equinox(tmp_path):
    path = RunFolder(tmp_path).save_meta(META)
    assert_same(load_meta(path, META), META)
    assert_same(RunFolder(tmp_path).load_meta(META), META)
    read = eqx.tree_deserialise_leaves(path, META)
    np.testing.assert_array_equal(read["body"][0], META["body"][0])


OTHERS = {
    r"with \['w'\]: float32\[2\]. Expected: \['w'\]: float32\[3\]": {"w": np.ones(3), "b": 1.0},
    r"with \['w'\]: float32\[2\]. Expected: \['w'\]: int32\[2\]": {"w": np.ones(2, int), "b": 1.0},
    r"with \['b'\]: float32\[\]. Expected: \['b'\]: no array": {"w": np.ones(2)},
    r"with \['c'\]: no array. Expected: \['c'\]": {"w": np.ones(2), "b": 1.0, "c": 0.0},
}


@pytest.mark.parametrize("said", OTHERS)
def test_another_tree_is_refused_by_the_names_of_its_leaves(said, tmp_path):
    path = save_meta(tmp_path / "file", {"w": np.ones(2), "b": 1.0})
    with pytest.raises(RunError, match=said):
        load_meta(path, OTHERS[said])


def test_a_missing_or_foreign_file_is_a_run_error(tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "foreign.eqx", META)
    for name in ("none", "foreign.eqx", "."):
        with pytest.raises(RunError, match=r"meta-parameters cannot be read.*as save_meta"):
            load_meta(tmp_path / name, META)


@pytest.mark.parametrize("leaf", [lambda key: key, "text", jax.random.key(0), object()])
def test_a_leaf_that_is_no_array_is_named(leaf, tmp_path):
    with pytest.raises(StructureError, match=r"meta\['w'\]\[0\] is not an array of numbers"):
        save_meta(tmp_path / "file", {"w": [leaf]})
    assert not list(tmp_path.iterdir())
    save_meta(tmp_path / "file", {"w": [1.0]})
    with pytest.raises(StructureError, match=r"like\['w'\]\[0\] is not an array of numbers"):
        load_meta(tmp_path / "file", {"w": [leaf]})


def test_a_function_of_a_key_is_not_a_tree(tmp_path):
    recipe = il.recipes.maml(
        il.models.mlp([1, 3, 1]), il.models.mean_squared_error, rate=0.1, steps=1
    )
    path = save_meta(tmp_path / "file", recipe.init_meta(jax.random.key(0)))
    with pytest.raises(StructureError, match=r"jax.eval_shape\(recipe.init_meta, key\)"):
        load_meta(path, recipe.init_meta)
    load_meta(path, jax.eval_shape(recipe.init_meta, jax.random.key(0)))
