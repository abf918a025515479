"""Weights from safetensors, and programs that run without the library."""

import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.adapters._where import named_leaves
from innerloop.checks import optional_package
from innerloop.models import cross_entropy

KEY = jax.random.key(5)
MLP = il.models.mlp([3, 4, 5])
PARAMS = MLP.init(KEY)
LIKE = jax.eval_shape(MLP.init, KEY)
NAMED = {path: np.asarray(leaf) for path, leaf in named_leaves(PARAMS).items()}
load = il.adapters.load_safetensors


def saved(path, tensors):
    """A file as other programs write it."""
    save = optional_package("safetensors.numpy", "this test", extra="safetensors").save_file
    save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def file(tmp_path):
    return lambda tensors, name="weights.safetensors": saved(tmp_path / name, tensors)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


# --- safetensors ---------------------------------------------------------------------------------

OTHER_NAMES = {
    "body.0.weights": "layer.weight",
    "body.0.bias": "layer.bias",
    "head.weights": "classifier.weight",
    "head.bias": "classifier.bias",
}
# How the file names the tensors, and the `names` that says so.
NAMES = {
    "the same": (lambda path: path, None),
    "a function": (lambda path: f"model.{path}", lambda path: f"model.{path}"),
    "a dictionary": (OTHER_NAMES.__getitem__, OTHER_NAMES),
    "some of them": (
        lambda path: "out" if path == "head.bias" else path,
        {"head.bias": "out"},
    ),
    "swapped": (
        lambda path: {"a": "b", "b": "a"}.get(path, path),
        {"a": "b", "b": "a"},
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_arrays_come_back_bit_for_bit_under_any_names(name, file):
    in_file, names = NAMES[name]
    tree = {"a": jnp.arange(3.0), "b": jnp.ones(3)} if name == "swapped" else PARAMS
    arrays = {in_file(path): np.asarray(leaf) for path, leaf in named_leaves(tree).items()}
    same(load(file(arrays), tree, names=names), jax.tree.map(np.asarray, tree))


def test_shapes_are_enough_and_the_result_starts_a_recipe(file):
    loaded = load(file(NAMED), LIKE)
    recipe = il.recipes.pretrained(il.recipes.maml(MLP, cross_entropy), loaded)
    same(jax.tree.map(np.asarray, recipe.init_meta(jax.random.key(9))), loaded)


WIDTHS = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


@pytest.mark.parametrize("stored", WIDTHS)
@pytest.mark.parametrize("wanted", WIDTHS)
def test_floats_of_any_width_become_those_of_the_tree(stored, wanted, file, x64):
    numbers = np.linspace(-3, 3, 7).astype(stored)
    like = {"w": jax.ShapeDtypeStruct((7,), wanted)}
    loaded = load(file({"w": numbers}), like)["w"]
    assert loaded.dtype == jnp.dtype(wanted)
    np.testing.assert_array_equal(loaded, numbers.astype(wanted))


def raw(path, **tensors):
    """A file of tensors by the names of their types, of which NumPy does not have all."""
    header, content = {}, b""
    for name, (kind, shape, data) in tensors.items():
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


FLOAT8 = {
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F8_E8M0": jnp.float8_e8m0fnu,
    "F8_E4M3FNUZ": jnp.float8_e4m3fnuz,
    "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
}


@pytest.mark.parametrize("kind", FLOAT8)
def test_numbers_of_one_byte_are_read(kind, tmp_path):
    numbers = np.array([[0.5, 1.0], [2.0, 4.0]], FLOAT8[kind])
    one = ("F32", [1], np.ones(1, np.float32).tobytes())
    path = raw(tmp_path / "w", x=one, w=(kind, [2, 2], numbers.tobytes()))
    same(load(path), {"x": np.ones(1, np.float32), "w": numbers})
    like = {"x": np.ones(1), "w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    np.testing.assert_array_equal(load(path, like)["w"], numbers.astype(np.float32))
    load(path, {"x": np.ones(1)}, ignored=["w"])["x"]


def test_numbers_of_less_than_a_byte_do_not_prevent_others_from_being_read(tmp_path):
    one = ("F32", [1], np.ones(1, np.float32).tobytes())
    path = raw(tmp_path / "w", x=one, w=("F4", [4], b"12"), v=("F6_E2M3", [4], b"123"))
    x = {"x": np.ones(1, np.float32)}
    same(load(path, x, ignored=["w", "v"]), x)
    message = "less than a byte.*w: F6_E2M3 for 'v'; F4 for 'w'.*with like"
    with pytest.raises(il.errors.DataError, match=message):
        load(path)


@pytest.mark.parametrize("wanted", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e4m3b11fnuz])
def test_numbers_beyond_a_narrow_range_are_refused(wanted, file):
    like = {"w": jax.ShapeDtypeStruct((2,), wanted)}
    with pytest.raises(il.errors.DataError, match=r"beyond the range.*up to 1e\+05 for 'w' in"):
        load(file({"w": np.array([1e5, 1], np.float32)}), like)
    kept = load(file({"w": np.array([np.nan, 1], np.float32)}), like)["w"]
    assert np.isnan(kept[0]) and kept[1] == 1


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, bool])
def test_whole_numbers_come_back_as_they_are(dtype, file):
    numbers = np.array([0, 1, 1], dtype)
    same(load(file({"w": numbers}), {"w": numbers}), {"w": numbers})


def test_without_a_tree_all_tensors_come_by_name_to_be_transposed(file):
    torch_like = {name: leaf.T for name, leaf in NAMED.items()}
    tensors = load(file(torch_like))
    assert tensors.keys() == NAMED.keys()
    same({name: tensor.T for name, tensor in tensors.items()}, NAMED)


def test_other_tensors_of_the_file_may_be_ignored(file):
    path = file(
        NAMED | {"lm_head.weight": np.ones(2), "lm_head.bias": np.ones(2), "step": np.ones(1)}
    )
    same(load(path, PARAMS, ignored=["lm_head", "st?p"]), jax.tree.map(np.asarray, PARAMS))
    with pytest.raises(il.errors.DataError, match=r"'step'.*ignored=\['step'\]"):
        load(path, PARAMS, ignored=["lm_head"])
    with pytest.raises(
        il.errors.DataError, match=r"matches no tensor.*'lmhead' \(closest: 'lm_head"
    ):
        load(path, PARAMS, ignored=["lmhead", "lm_head", "st?p"])


def changed(**tensors):
    return {**NAMED, **tensors}


def without(*names):
    return {name: leaf for name, leaf in NAMED.items() if name not in names}


def renamed(old, new):
    return {new if name == old else name: leaf for name, leaf in NAMED.items()}


with_prefix = {f"model.{name}": leaf for name, leaf in NAMED.items()}
MISSING, EXTRA = "no tensor for some arrays", "belong to no array of the tree"
# Tensors of the file, further arguments, and what the error says.
WRONG_TENSORS = {
    "missing": (without("head.bias"), {}, MISSING + ".*'head.bias' .closest: "),
    "other name": (
        renamed("head.bias", "head.offset"),
        {},
        MISSING + ".*'head.bias' .closest: .*'head.offset'.*1 tensors of the file belong",
    ),
    "other case": (
        renamed("head.bias", "Head.Bias"),
        {},
        MISSING + ".*'head.bias' .closest: 'Head.Bias'",
    ),
    "prefix": (with_prefix, {}, MISSING + ".*names=lambda path: f'model.{path}'"),
    "prefix of some": (
        {**with_prefix, "head.bias": NAMED["head.bias"]},
        {},
        "names=lambda path: f'model.{path}'",
    ),
    "wrong function": (NAMED, {"names": lambda path: path + "s"}, MISSING + ".*'head.bias'"),
    "extra": (changed(**{"head.scale": np.ones(2)}), {}, EXTRA + ".*'head.scale' .closest: 'head"),
    "many extra": (
        changed(**{f"x{i}": np.ones(2) for i in range(20)}),
        {},
        EXTRA + ".*and 15 more",
    ),
    "transposed": (
        changed(**{"head.weights": NAMED["head.weights"].T}),
        {},
        r"other shapes.*\(5, 4\), and 'head.weights' of the tree \(4, 5\).*without like",
    ),
    "other axes": (changed(**{"head.bias": np.ones((5, 1), np.float32)}), {}, "other shapes"),
    "integers": (
        changed(**{"head.bias": np.arange(5)}),
        {},
        "another dtype.*int64 for 'head.bias'.*float32",
    ),
    "large numbers": (
        changed(**{"head.bias": np.full(5, 1e300)}),
        {},
        "beyond the range.*1e.300 for 'head.bias'",
    ),
    "no tensors": ({}, {}, MISSING),
}


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_named_with_the_closest(name, file):
    tensors, arguments, message = WRONG_TENSORS[name]
    with pytest.raises(il.errors.DataError, match=message) as caught:
        load(file(tensors), PARAMS, **arguments)
    assert "weights.safetensors" in caught.value.got
    assert len(str(caught.value)) < 1500


WRONG_ARGUMENTS = {
    "path": (lambda path: load(3, PARAMS), "path must be a path"),
    "ignored, a text": (
        lambda path: load(path, PARAMS, ignored="lm_head"),
        r"ignored must be a list of patterns.*ignored=\['lm_head'\]",
    ),
    "ignored, a number": (lambda path: load(path, PARAMS, ignored=3), "must be a list of patterns"),
    "names, a text": (
        lambda path: load(path, PARAMS, names="model."),
        "names must be a function.*names=lambda path: 'model.' \\+ path",
    ),
    "names of other arguments": (
        lambda path: load(path, PARAMS, names=lambda path, leaf: path),
        "names must be a function",
    ),
    "names that raise": (
        lambda path: load(path, PARAMS, names=lambda path: {}[path]),
        "names failed on what it was given: KeyError",
    ),
    "like, a model": (
        lambda path: load(path, MLP),
        r"like is not a tree of arrays.*like=model.init\(jax.random.key\(0\)\)",
    ),
    "like, a module": (
        lambda path: load(path, eqx.nn.MLP(3, 5, 4, 1, key=KEY)),
        r"like is not a tree of arrays.*from_equinox\(module\).init",
    ),
    "like, a function": (lambda path: load(path, jnp.tanh), "not a tree of arrays"),
    "like, text": (lambda path: load(path, {"a": "b"}), "not a tree of arrays"),
    "like, an array of text": (lambda path: load(path, np.array(["b"])), "not a tree of arrays"),
    "names, a typo": (
        lambda path: load(path, PARAMS, names={"head.bais": "b"}),
        "'head.bais' .closest: 'head.bias'",
    ),
    "names, twice": (lambda path: load(path, PARAMS, names=lambda each: "w"), "'w' for .* and "),
    "names, no text": (
        lambda path: load(path, PARAMS, names=lambda each: 3),
        "3 for 'body.0.bias'",
    ),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused(name, file, as_users_see_it):
    call, message = WRONG_ARGUMENTS[name]
    with pytest.raises(il.errors.StructureError, match=message):
        call(file(NAMED))


def damaged(content):
    """Contents of files that are not what they were: cut, longer, or with other bytes."""
    generator = np.random.default_rng(0)
    yield b""
    yield b"not a safetensors file at all"
    yield b"\xff" * 64
    yield (2**63).to_bytes(8, "little") + content[8:]
    yield content + b"\0"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    yield len(header).to_bytes(8, "little") + header.encode()
    yield from (content[:n] for n in generator.integers(0, len(content), 20))
    for _ in range(60):
        numbers = np.frombuffer(content, np.uint8).copy()
        where = generator.integers(0, len(numbers), 3)
        numbers[where] = generator.integers(0, 256, 3)
        yield numbers.tobytes()


def test_damaged_files_are_refused_or_have_the_shapes_of_the_tree(file):
    path = file(NAMED)
    refused = 0
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        try:
            loaded = load(path, PARAMS)
        except il.errors.DataError as error:
            refused += 1
            assert "weights.safetensors" in error.got
        else:
            assert jax.tree.map(np.shape, loaded) == jax.tree.map(jnp.shape, PARAMS)
    assert refused > 26


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


NO_FILES = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "sparse": make_sparse,
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_of_tensors_is_refused(kind, tmp_path):
    NO_FILES[kind](tmp_path / "weights")
    with pytest.raises(il.errors.DataError, match=r"cannot be read.*weights"):
        load(tmp_path / "weights", PARAMS)


# --- export --------------------------------------------------------------------------------------

WAYS = 3
NET = il.models.mlp([3, 8, WAYS])
BODY = il.models.mlp_features([3, 8])


def examples(key, rows, mask=None):
    inputs_key, targets_key = jax.random.split(key)
    targets = jax.random.randint(targets_key, (rows,), 0, WAYS)
    return il.Examples(jax.random.normal(inputs_key, (rows, 3)), targets, mask, ways=WAYS)


SUPPORT, QUERY = examples(jax.random.key(1), 9), examples(jax.random.key(2), 4)
RECIPES = {
    "maml": lambda: il.recipes.maml(NET, cross_entropy, 0.1, 3),
    "many-steps": lambda: il.recipes.maml(NET, cross_entropy, 0.1, 20),
    "adam": lambda: il.recipes.maml(NET, cross_entropy)._replace(
        adaptation=il.GradientDescent(optax.adam(0.01), 3)
    ),
    "reptile": lambda: il.recipes.reptile(NET, cross_entropy, test_steps=3),
    "meta_sgd": lambda: il.recipes.meta_sgd(NET, cross_entropy),
    "anil": lambda: il.recipes.anil(NET, cross_entropy),
    "lora": lambda: il.recipes.maml(
        il.adapters.lora(NET, NET.init(KEY), 2, il.adapters.matching("*weights")), cross_entropy
    ),
    "protonet": lambda: il.recipes.protonet(BODY, cross_entropy, WAYS),
    "cnp": lambda: il.recipes.cnp(
        BODY, il.models.mlp([8, 6]), il.models.mlp([8 + 6 * WAYS, WAYS]), cross_entropy, WAYS
    ),
}
FIXED_ROWS = {"r2d2": lambda: il.recipes.r2d2(BODY, cross_entropy, WAYS)}
"""How its linear system is solved depends on the number of rows."""

CHILD = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("innerloop", "equinox", "optax", "lineax", "optimistix"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
import pathlib
import jax, numpy as np
try:
    import innerloop
except ImportError:
    pass
else:
    raise SystemExit("innerloop can be imported")
for program in pathlib.Path(sys.argv[1]).glob("*.bin"):
    data = np.load(program.with_suffix(".npz"))
    query = {name[2:]: data[name] for name in data if name.startswith("q.")}
    support = {name[2:]: data[name] for name in data if name.startswith("s.")}
    exported = jax.export.deserialize(program.read_bytes())
    predictions = exported.call(*[support] * bool(support), query)
    np.testing.assert_allclose(predictions, data["predictions"], rtol=2e-5, atol=1e-6)
    print(program.stem)
"""


def predicted(learner, meta, support, query, key=jax.random.key(0)):
    """By the library: the adapted parameters, and their predictions."""
    params, _ = il.adapt(learner.problem, learner.adaptation, meta, support, key)
    whole = learner.problem.whole(meta)
    return params, learner.predict(params, whole, query, key)


def as_arguments(data, targets=True):
    fields = {"inputs": data.inputs, "targets": data.targets, "mask": data.mask}
    return {n: v for n, v in fields.items() if v is not None and (targets or n != "targets")}


def write(folder, name, program, expected, query, support=None):
    (folder / f"{name}.bin").write_bytes(program)
    data = {f"q.{k}": v for k, v in as_arguments(query, targets=False).items()}
    data |= {f"s.{k}": v for k, v in as_arguments(support).items()} if support else {}
    np.savez(folder / f"{name}.npz", predictions=expected, **data)


def run_without_the_library(folder):
    """The names of the programs whose predictions were as expected, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", CHILD, str(folder)]
    ran = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_programs_run_where_the_library_cannot_be_imported(tmp_path):
    """Learners and adapted parameters, on other numbers of rows than those of the export."""
    other_support, other_query = examples(jax.random.key(3), 7), examples(jax.random.key(4), 5)
    names = set()
    for name, make in (RECIPES | FIXED_ROWS).items():
        recipe = make()
        learner, meta = recipe.learner, recipe.init_meta(KEY)
        free = name not in FIXED_ROWS
        program = il.adapters.export_learner(learner, meta, SUPPORT, QUERY, any_rows=free)
        task = (other_support, other_query) if free else (SUPPORT, QUERY)
        params, expected = predicted(learner, meta, *task)
        write(tmp_path, f"{name}-learner", program, expected, task[1], task[0])
        adapted = il.adapters.export_adapted(learner, params, meta, QUERY)
        whole = learner.problem.whole(meta)
        of_other = learner.predict(params, whole, other_query, jax.random.key(0))
        write(tmp_path, f"{name}-adapted", adapted, of_other, other_query)
        names |= {f"{name}-learner", f"{name}-adapted"}
    done = run_without_the_library(tmp_path)
    assert done == names


def test_masks_are_arguments_of_the_program():
    learner = RECIPES["maml"]().learner
    meta = RECIPES["maml"]().init_meta(KEY)
    mask = lambda rows, valid: jnp.arange(rows) < valid
    support = examples(jax.random.key(1), 9, mask(9, 6))
    program = il.adapters.export_learner(learner, meta, support, QUERY)
    call = jax.export.deserialize(program).call
    got = call(as_arguments(support), as_arguments(QUERY, targets=False))
    rows = lambda data, n: jax.tree.map(lambda leaf: leaf[:n], data)
    _, expected = predicted(learner, meta, rows(support, 6), QUERY)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_key_decides_on_mini_batches():
    recipe = il.recipes.reptile(NET, cross_entropy, rate=0.1, rows=2)
    learner = il.Learner(recipe.problem, recipe.adaptation, recipe.predict)
    meta = recipe.init_meta(KEY)
    results = []
    for key in (jax.random.key(0), jax.random.key(7)):
        program = il.adapters.export_learner(learner, meta, SUPPORT, QUERY, key, any_rows=False)
        call = jax.export.deserialize(program).call
        results.append(call(as_arguments(SUPPORT), as_arguments(QUERY, targets=False)))
        _, expected = predicted(learner, meta, SUPPORT, QUERY, key)
        np.testing.assert_allclose(results[-1], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(*results)


def test_data_of_ones_own_in_plain_containers():
    """A problem without `Examples`: the mean of some numbers."""
    loss = lambda params, meta, batch, key: jnp.mean((batch["x"] - params) ** 2)
    predict = lambda params, meta, batch, key: {"above": batch["x"] > params, "mean": params}
    learn = il.GradientDescent(optax.sgd(0.5), 1)
    learner = il.Learner(il.Problem(lambda meta, s, k: meta, loss, loss), learn, predict)
    support, query = {"x": jnp.arange(4.0)}, {"x": jnp.ones(2)}
    program = il.adapters.export_learner(learner, jnp.zeros(()), support, query)
    got = jax.export.deserialize(program).call(
        {"x": jnp.arange(6.0)}, {"x": jnp.array([2.0, 3, 4])}
    )
    assert got["mean"] == 2.5
    np.testing.assert_array_equal(got["above"], [False, True, True])


def by_rows(params, meta, batch, key):
    return jnp.stack(
        [batch.inputs[i] @ params["head"]["weights"] for i in range(len(batch.inputs))]
    )


def as_module(params, meta, batch, key):
    return il.Examples(batch.inputs, batch.inputs)


def of_x(params, meta, batch, key):
    return batch["x"]


def learner_of(predict):
    recipe = il.recipes.maml(il.models.mlp([3, WAYS]), cross_entropy)
    return il.Learner(recipe.problem, recipe.adaptation, predict)


META = il.models.mlp([3, WAYS]).init(KEY)


def exported(predict, support=SUPPORT, query=QUERY, **options):
    return il.adapters.export_learner(learner_of(predict), META, support, query, **options)


on_host = lambda params, meta, batch, key: jax.pure_callback(
    np.asarray, jax.ShapeDtypeStruct((4, 3), jnp.float32), batch.inputs
)
WRONG_EXPORTS = {
    "no predictions": (lambda: exported(None), "only a learner with predictions"),
    "a recipe": (
        lambda: il.adapters.export_learner(RECIPES["maml"](), META, SUPPORT, QUERY),
        "must be a Learner.*recipe.learner",
    ),
    "rows in Python": (lambda: exported(by_rows), "any number of rows.*any_rows=False"),
    "a class of results": (lambda: exported(as_module), "dictionaries, lists and tuples"),
    "a callback": (lambda: exported(on_host, any_rows=False), "cannot call it back"),
    "no common rows": (
        lambda: exported(of_x, query={"x": jnp.ones(2), "y": jnp.ones(3)}),
        "no common number of rows.*any_rows=False",
    ),
    "a fault of predict": (
        lambda: exported(lambda params, meta, batch, key: batch["x"]),
        "predict failed on what it was given",
    ),
    "a pair": (
        lambda: il.adapters.export_adapted(
            learner_of(lambda params, meta, batch, key: batch.inputs @ params["head"]["weights"]),
            (META, {}),
            META,
            QUERY,
        ),
        r"params is the pair.*export_adapted\(learner, params\[0\], meta, query\)",
    ),
    "words": (lambda: exported(by_rows, support={"x": "a"}), "not an array"),
    "platform": (lambda: exported(by_rows, platforms=["gpu"]), "platforms must be"),
}


@pytest.mark.parametrize("name", WRONG_EXPORTS)
def test_what_cannot_be_exported_is_refused(name, as_users_see_it):
    call, message = WRONG_EXPORTS[name]
    with pytest.raises(il.errors.StructureError, match=message):
        call()


def test_several_platforms():
    program = exported(
        lambda params, meta, batch, key: batch.inputs @ params["head"]["weights"],
        platforms=["cpu", "cuda", "tpu"],
    )
    assert jax.export.deserialize(program).platforms == ("cpu", "cuda", "tpu")
