"""Whole networks: shapes, dtypes, who depends on whom, two derivatives, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from innerloop import models
from innerloop.errors import StructureError
from innerloop.problem import Examples, subset
from innerloop.tasks.image_classes import as_unit_interval

IMAGE = (4, 8, 8, 1)
networks = {
    "mlp": (models.mlp([64, 7, 3]), "none"),
    "strided": (models.conv4(3, 4, blocks=2), "transductive"),
    "max_pool": (models.conv4(3, 4, pooled=(8, 8), blocks=2), "transductive"),
    "per_example": (models.conv4(3, 4, blocks=2, normalisation=models.per_example), "per_example"),
    "none": (models.conv4(3, 4, blocks=2, normalisation=models.none), "none"),
}
every_network = pytest.mark.parametrize("name", networks)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def cast(params, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def start(model, *tasks):
    """Parameters of `model` drawn by numpy, which compiles nothing; `tasks` are leading axes."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        spread = 1 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        return jnp.asarray(rng.normal(size=(*tasks, *leaf.shape)) * spread, leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0)))


def apply(model, params, x, mask=None):
    return jax.jit(model.apply)(params, x, None, mask)


@every_network
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_follow_the_parameters(name, dtype):
    model, normalisation = networks[name]
    assert model.normalisation == normalisation
    params = cast(start(model), dtype)
    assert set(params) == {"body", "head"}
    outputs = apply(model, params, images(*IMAGE))
    assert outputs.shape == (4, 3) and outputs.dtype == dtype and jnp.isfinite(outputs).all()


@every_network
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_whole_numbers_are_refused_and_the_cure_gives_what_training_had(name, dtype):
    model, _ = networks[name]
    pixels = np.arange(np.prod(IMAGE)).reshape(IMAGE).astype("uint8")
    with pytest.raises(StructureError, match=r"may be pixels.*astype\(float\) / 255"):
        model.apply(start(model), pixels.astype(dtype), None, None)
    trained = np.asarray(as_unit_interval(jnp.asarray(pixels)))
    np.testing.assert_allclose(pixels.astype(dtype).astype(float) / 255, trained, rtol=1e-6)


@every_network
def test_double_precision(x64, name):
    params = start(networks[name][0])
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(params))
    assert apply(networks[name][0], params, images(*IMAGE)).dtype == jnp.float64


@every_network
def test_only_transductive_predictions_depend_on_other_rows(name):
    model, normalisation = networks[name]
    params, x = start(model), images(*IMAGE)
    outputs, others = apply(model, params, x), apply(model, params, x.at[0].set(x[0, ::-1]))
    changed = bool((jnp.abs(outputs[1:] - others[1:]) > 1e-4).any())
    assert changed == (normalisation == "transductive")
    assert (jnp.abs(outputs[0] - others[0]) > 1e-5).any()


@every_network
def test_padding_changes_nothing_whatever_it_holds(x64, name):
    model, _ = networks[name]
    params, x = start(model), images(*IMAGE).astype(jnp.float64)
    targets = jnp.arange(4) % 3
    mask = jnp.arange(6) < 4

    def loss(params, examples):
        outputs = model.apply(params, examples.inputs, None, examples.mask)
        return models.cross_entropy(outputs, examples)[0]

    def padded(value):
        blank = jnp.full((2, *IMAGE[1:]), value, x.dtype)
        rest = jnp.full(2, -7, targets.dtype)
        return Examples(jnp.concatenate([x, blank]), jnp.concatenate([targets, rest]), mask)

    gradient = jax.jit(jax.value_and_grad(loss))
    expected = gradient(params, Examples(x, targets))
    for value in (0.0, 1e6, np.nan):
        got = gradient(params, padded(value))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, expected)


@every_network
def test_maml_gradient_equals_its_formula(x64, name):
    """One inner step: the gradient is (I - αH) times the query gradient, H by forward mode."""
    model, _ = networks[name]
    params = start(model)
    support, query = (
        Examples(images(*IMAGE, seed=seed).astype(jnp.float64), jnp.arange(4) % 3)
        for seed in (1, 2)
    )

    def loss(params, examples):
        outputs = model.apply(params, examples.inputs, None, None)
        return models.cross_entropy(outputs, examples)[0]

    def adapted(params):
        gradient = jax.grad(loss)(params, support)
        return jax.tree.map(lambda p, g: p - 0.4 * g, params, gradient)

    @jax.jit
    def formula(params):
        outer = jax.grad(loss)(adapted(params), query)
        curved = jax.jvp(lambda p: jax.grad(loss)(p, support), (params,), (outer,))[1]
        return jax.tree.map(lambda g, h: g - 0.4 * h, outer, curved)

    exact = jax.jit(jax.grad(lambda params: loss(adapted(params), query)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), exact, formula(params))
    for path, leaf in jax.tree.leaves_with_path(exact):
        assert leaf.any(), f"no meta-gradient reaches {jax.tree_util.keystr(path)}"


@every_network
def test_weights_per_task_under_vmap_equal_a_loop(x64, name):
    model, _ = networks[name]
    params = start(model, 3)
    x = images(3, *IMAGE)
    together = jax.jit(jax.vmap(lambda p, x: model.apply(p, x, None, None)))(params, x)
    for task in range(3):
        alone = apply(model, jax.tree.map(lambda leaf, t=task: leaf[t], params), x[task])
        np.testing.assert_allclose(together[task], alone, atol=1e-12)


def test_the_head_can_be_adapted_alone():
    params = start(networks["strided"][0])
    head, merge = subset(params, lambda params: params["head"])
    assert jax.tree.map(jnp.shape, head) == {"weights": (4, 3), "bias": (3,)}
    assert jax.tree.structure(merge(head)) == jax.tree.structure(params)


def test_mlp_equals_numpy(x64):
    model = models.mlp([2, 5, 4, 3], activation=jnp.tanh)
    params = start(model)
    x = np.random.default_rng(0).normal(size=(6, 1, 2))
    expected = x.reshape(6, 2)
    for layer in params["body"]:
        expected = np.tanh(expected @ layer["weights"] + layer["bias"][None])
    expected = expected @ params["head"]["weights"] + params["head"]["bias"][None]
    np.testing.assert_allclose(apply(model, params, x), expected, atol=1e-14)


def test_mlp_features_are_the_hidden_layers_of_an_mlp(x64):
    features = models.mlp_features([2, 5, 4], activation=jnp.tanh)
    params = start(models.mlp([2, 5, 4, 3], activation=jnp.tanh))
    assert jax.tree.map(jnp.shape, start(features)) == jax.tree.map(jnp.shape, params["body"])
    x = np.random.default_rng(0).normal(size=(6, 2))
    whole = apply(models.linear_head(features, 4, 3), params, x)
    np.testing.assert_allclose(
        whole, apply(models.mlp([2, 5, 4, 3], activation=jnp.tanh), params, x), atol=1e-14
    )


def test_film_scales_and_shifts_the_features(x64):
    features, head = models.mlp_features([2, 4]), models.mlp([4, 3])
    model = models.film(features, 4, head, context=5)
    assert not np.any(model.init(jax.random.key(0))["context"])
    params = start(model)
    x = np.random.default_rng(0).normal(size=(6, 2))
    film = params["context"] @ params["film"]["weights"] + params["film"]["bias"]
    hidden = apply(features, params["body"], x)
    expected = apply(head, params["head"], (1 + film[:4])[None] * hidden + film[4:][None])
    np.testing.assert_allclose(apply(model, params, x), expected, atol=1e-14)
    for sizes in ((0, 5), (4, 0)):
        with pytest.raises(StructureError, match="must be a whole number"):
            models.film(features, sizes[0], head, context=sizes[1])


def test_strided_network_is_four_halvings_and_a_mean():
    features = models.conv_features(filters=4)
    params = start(features)
    assert [layer["weights"].shape for layer in params] == [(3, 3, 1, 4)] + 3 * [(3, 3, 4, 4)]
    for side in (28, 8, 1):
        shape = jax.eval_shape(features.apply, params, jnp.ones((2, side, side, 1)), None, None)
        assert shape.shape == (2, 4)


def test_max_pool_network_keeps_the_positions_that_remain():
    """28 → 14 → 7 → 3 → 1; miniImageNet's 84 → 42 → 21 → 10 → 5."""
    for image, width in (((28, 28), 4), ((84, 84), 100), ((16, 33), 8)):
        features = models.conv_features(filters=4, pooled=image)
        params = jax.eval_shape(features.init, jax.random.key(0))
        outputs = jax.eval_shape(features.apply, params, jnp.ones((2, *image, 1)), None, None)
        assert outputs.shape == (2, width)


def test_init_draws_every_layer_afresh():
    blocks = models.conv_features(filters=4, blocks=3).init(jax.random.key(0))
    layers = models.mlp([3, 3, 3, 3]).init(jax.random.key(0))["body"]
    for first, second in (blocks[1:], layers):
        assert not np.array_equal(first["weights"], second["weights"])


def test_initialisers_are_replaceable():
    twos = jax.nn.initializers.constant(2.0)
    mlp = models.mlp([1, 4, 1], weights=twos).init(jax.random.key(0))
    assert (np.asarray(mlp["head"]["weights"]) == 2).all() and not mlp["head"]["bias"].any()
    features = models.conv_features(4, blocks=1, weights=twos)
    params = models.linear_head(features, 4, 3, weights=twos).init(jax.random.key(0))
    assert (np.asarray(params["body"][0]["weights"]) == 2).all()
    assert (np.asarray(params["head"]["weights"]) == 2).all()


@pytest.mark.parametrize("sizes", [[], [3], [3, 0], [3, -1, 2], [True, 2]])
def test_mlp_refuses_sizes(sizes):
    with pytest.raises(
        StructureError,
        match=r"sizes must be a tuple of at least 2 .*Write: mlp\(..., sizes=\(40, 40\)\)",
    ):
        models.mlp(sizes)


@pytest.mark.parametrize("shape", [(5, 3), (5,), (5, 2, 2)])
def test_mlp_refuses_inputs_of_another_width(shape):
    model = models.mlp([2, 4, 1])
    with pytest.raises(StructureError, match="with 2 entries per row"):
        apply(model, start(model), jnp.ones(shape))


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 3), (5, 64)])
def test_conv4_refuses_what_is_not_its_images(shape):
    model = models.conv4(3, filters=4)
    with pytest.raises(StructureError, match=r"\(rows, height, width, 1\)"):
        apply(model, start(model), jnp.ones(shape))


def test_max_pool_network_refuses_images():
    with pytest.raises(StructureError, match="at least 16 × 16 pixels") as error:
        models.conv4(3, pooled=(8, 28))
    assert "blocks=3" in str(error.value)
    model = models.conv4(3, pooled=(16, 16), filters=4)
    with pytest.raises(StructureError, match=r"\(rows, 16, 16, 1\)"):
        apply(model, start(model), jnp.ones((2, 28, 28, 1)))


@pytest.mark.parametrize("wrong", ["filters", "channels", "blocks", "ways"])
def test_sizes_must_be_positive(wrong):
    for pooled in (None, (28, 28)):
        with pytest.raises(StructureError, match=f"{wrong} must be a whole number"):
            models.conv4(**{"ways": 5, "pooled": pooled, wrong: 0})


def test_linear_head_refuses_features_of_another_width():
    model = models.linear_head(models.conv_features(filters=4), width=5, outputs=2)
    with pytest.raises(StructureError, match=r"shape \(rows, 5\)"):
        apply(model, start(model), images(*IMAGE))
