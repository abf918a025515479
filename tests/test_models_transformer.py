"""The transformer: its formula, causality, checkpointing, two derivatives, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import innerloop as il
from innerloop import models
from innerloop.errors import StructureError
from innerloop.problem import Examples

VOCABULARY, WIDTH, DEPTH, HEADS, LENGTH = SIZES = (11, 8, 2, 2, 6)
MODEL = models.transformer(*SIZES)
CHECKPOINTED = models.transformer(*SIZES, checkpoint_blocks=True)


def tokens(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCABULARY, shape), jnp.int32)


def start(model, *tasks):
    """Parameters of `model` drawn by numpy, none of them at zero; `tasks` are leading axes."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=(*tasks, *leaf.shape)) / 2, leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0)))


def apply(model, params, inputs, mask=None):
    return jax.jit(model.apply)(params, inputs, None, mask)


def loss_of(model):
    """`loss(params, examples)`: cross-entropy of the next token, averaged over positions."""

    def loss(params, examples):
        logits = model.apply(params, examples.inputs, None, examples.mask)
        return models.cross_entropy(logits, examples)[0]

    return loss


def sentences(rows, seed=0):
    whole = tokens(rows, LENGTH + 1, seed=seed)
    return Examples(whole[:, :-1], whole[:, 1:])


def close(left, right, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# Values


def numpy_transformer(params, row):
    """One row, position by position: a loop over blocks, queries and heads."""
    params = jax.tree.map(np.asarray, params)
    body, head = params["body"], params["head"]

    def norm(params, x):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["shift"]

    def dense(params, x):
        return x @ params["weights"] + params["bias"]

    def gelu(x):
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def attention(weights, x):
        query, key, value = np.split(x @ weights, 3, axis=1)
        outputs = np.zeros_like(x)
        for head in np.split(np.arange(WIDTH), HEADS):
            for i in range(len(x)):
                scores = key[: i + 1, head] @ query[i, head] / np.sqrt(WIDTH / HEADS)
                shares = np.exp(scores) / np.exp(scores).sum()
                outputs[i, head] = shares @ value[: i + 1, head]
        return outputs

    x = body["tokens"][np.asarray(row)] + body["positions"][: len(row)]
    for i in range(DEPTH):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], body["blocks"])
        attended = attention(block["query_key_value"], norm(block["attention_norm"], x))
        x = x + dense(block["attention_out"], attended)
        x = x + dense(block["mlp_out"], gelu(dense(block["mlp_in"], norm(block["mlp_norm"], x))))
    return dense(head, norm(body["norm"], x))


@pytest.mark.parametrize("positions", [1, LENGTH - 2, LENGTH])
def test_equals_numpy_for_any_number_of_positions(x64, positions):
    params, inputs = start(MODEL), tokens(3, positions)
    expected = np.stack([numpy_transformer(params, row) for row in inputs])
    assert expected.shape == (3, positions, VOCABULARY)
    close(apply(MODEL, params, inputs), expected)


def test_a_later_token_never_changes_earlier_logits(x64):
    params, inputs = start(MODEL), tokens(2, LENGTH)
    logits = apply(MODEL, params, inputs)
    for position in range(LENGTH):
        changed = inputs.at[0, position].set((inputs[0, position] + 1) % VOCABULARY)
        difference = np.asarray(apply(MODEL, params, changed) != logits)
        assert not difference[0, :position].any() and difference[0, position:].any(axis=1).all()
        assert not difference[1].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", [MODEL, CHECKPOINTED])
def test_logits_and_gradient_follow_the_parameters(model, dtype):
    assert model.normalisation == "none"
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), start(model))
    logits = apply(model, params, tokens(3, LENGTH).astype(jnp.uint8))
    assert logits.shape == (3, LENGTH, VOCABULARY) and jnp.isfinite(logits).all()
    gradient = jax.eval_shape(jax.grad(loss_of(model)), params, sentences(3))
    assert all(leaf.dtype == dtype for leaf in (logits, *jax.tree.leaves(gradient)))


def test_bfloat16_is_near_float32():
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start(MODEL))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    value_and_gradient = jax.jit(jax.value_and_grad(loss_of(MODEL)))
    pairs = zip(
        jax.tree.leaves(value_and_gradient(narrow, sentences(3))),
        jax.tree.leaves(value_and_gradient(wide, sentences(3))),
        strict=True,
    )
    for near, exact in pairs:
        difference = np.abs(near.astype(jnp.float32) - exact).max()
        assert difference < 0.05 * np.abs(exact).max()


# Parameters


def test_parameters_and_their_number():
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    assert set(params) == {"body", "head"}
    blocks = params["body"]["blocks"]
    assert all(leaf.shape[0] == DEPTH for leaf in jax.tree.leaves(blocks))
    embeddings = (VOCABULARY + LENGTH) * WIDTH
    per_block = 12 * WIDTH**2 + 10 * WIDTH  # 2 norms 4, attention's bias 1, the mlp's 4 and 1
    head = WIDTH * VOCABULARY + VOCABULARY
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert number == embeddings + DEPTH * per_block + 2 * WIDTH + head


def test_start_is_near_the_uniform_guess(x64):
    """Unit variance of the logits costs about 1/2 nat; every matrix and block is drawn afresh."""
    model = models.transformer(64, 48, 4, 4, 16)
    params = model.init(jax.random.key(0))
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(params))
    blocks = params["body"]["blocks"]
    np.testing.assert_allclose(np.std(blocks["query_key_value"]), 48**-0.5, rtol=0.05)
    residual = (2 * 4 * 4 * 48) ** -0.5  # 2 · depth · inputs
    np.testing.assert_allclose(np.std(blocks["mlp_out"]["weights"]), residual, rtol=0.05)
    assert not np.array_equal(*blocks["query_key_value"][:2])
    whole = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 17)))
    value = jax.jit(loss_of(model))(params, Examples(whole[:, :-1], whole[:, 1:]))
    assert np.log(64) < value < np.log(64) + 1


def test_initialisers_are_replaceable():
    model = models.transformer(*SIZES, weights=jax.nn.initializers.constant(2.0))
    params = model.init(jax.random.key(0))
    blocks = params["body"]["blocks"]
    assert (blocks["mlp_in"]["weights"] == 2).all() and (params["head"]["weights"] == 2).all()
    assert (blocks["attention_out"]["weights"] == 1).all()  # 2 / √(2 · 2)
    assert not blocks["mlp_in"]["bias"].any() and not params["head"]["bias"].any()


# Derivatives


@pytest.fixture(scope="module")
def second_derivatives():
    """Gradient and Hessian-vector products, plain and checkpointed, in float64."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        params, examples = start(MODEL), sentences(3)
        rng = np.random.default_rng(1)
        v = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)

        def derivatives(model):
            value_and_gradient = jax.jit(jax.value_and_grad(loss_of(model)))
            gradient = lambda params: value_and_gradient(params, examples)[1]

            def slope(params):
                return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient(params), v)))

            def along(step):
                return gradient(jax.tree.map(lambda p, d: p + step * d, params, v))

            return {
                "value and gradient": value_and_gradient(params, examples),
                "reverse over reverse": jax.jit(jax.grad(slope))(params),
                "forward over reverse": jax.jit(
                    lambda params, v: jax.jvp(gradient, (params,), (v,))[1]
                )(params, v),
                "differences": jax.tree.map(lambda a, b: (a - b) / 2e-5, along(1e-5), along(-1e-5)),
            }

        return {"plain": derivatives(MODEL), "checkpointed": derivatives(CHECKPOINTED)}


@pytest.mark.full
def test_second_derivatives_three_ways(second_derivatives):
    found = second_derivatives["plain"]
    close(found["reverse over reverse"], found["forward over reverse"])
    close(found["reverse over reverse"], found["differences"], 1e-6)
    for kind in ("value and gradient", "reverse over reverse"):
        for path, leaf in jax.tree.leaves_with_path(found[kind]):
            assert np.any(leaf), f"no {kind} reaches {jax.tree_util.keystr(path)}"


@pytest.mark.full
def test_checkpointing_changes_no_number(second_derivatives):
    for kind in ("value and gradient", "reverse over reverse", "forward over reverse"):
        close(second_derivatives["plain"][kind], second_derivatives["checkpointed"][kind])


@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.full)])
def test_checkpointing_saves_memory(order):
    """Temporary memory of the compiled gradient, and of the gradient through an inner step."""

    def memory(checkpoint_blocks):
        model = models.transformer(16, 16, 8, 2, 32, checkpoint_blocks=checkpoint_blocks)
        params = jax.eval_shape(model.init, jax.random.key(0))
        rows = jnp.zeros((8, 32), jnp.int32)
        loss = loss_of(model)

        def adapted(params, examples):
            gradient = jax.grad(loss)(params, examples)
            return loss(jax.tree.map(lambda p, g: p - g, params, gradient), examples)

        gradient = jax.jit(jax.grad(loss if order == 1 else adapted))
        compiled = gradient.lower(params, Examples(rows, rows)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(True) < 0.6 * memory(False)


@pytest.mark.parametrize("model", [MODEL, CHECKPOINTED])
def test_weights_per_task_under_vmap_equal_a_loop(x64, model):
    params, inputs = start(model, 3), tokens(3, 2, LENGTH)
    together = jax.jit(jax.vmap(lambda p, x: model.apply(p, x, None, None)))(params, inputs)
    for task in range(3):
        alone = apply(model, jax.tree.map(lambda leaf, t=task: leaf[t], params), inputs[task])
        close(together[task], alone)


@pytest.mark.full
def test_meta_gradient_through_learning(x64):
    """MAML over tasks of different sentences, as the library runs it."""
    support, query = (
        jax.tree.map(lambda leaf: leaf.reshape(2, 3, LENGTH), sentences(6, seed)) for seed in (1, 2)
    )
    problem, learn, gradient, *_ = il.recipes.maml(CHECKPOINTED, il.models.cross_entropy, rate=0.1)
    step = jax.jit(il.meta_value_and_grad(problem, learn, gradient))
    meta = start(MODEL)
    _, got = step(meta, il.Episode(support, query), jax.random.key(0))

    def by_hand(meta):
        def task(support, query):
            gradient = jax.grad(loss_of(MODEL))(meta, support)
            adapted = jax.tree.map(lambda p, g: p - 0.1 * g, meta, gradient)
            return loss_of(MODEL)(adapted, query)

        return jnp.mean(jax.vmap(task)(support, query))

    close(got, jax.jit(jax.grad(by_hand))(meta), 1e-11)


# Padding and refusals


def test_padding_changes_nothing_whatever_it_holds(x64):
    params, examples = start(MODEL), sentences(3)
    mask = jnp.arange(5) < 3
    gradient = jax.jit(jax.value_and_grad(loss_of(MODEL)))
    expected = gradient(params, examples)
    for value in (0, VOCABULARY, -7):
        padded = jax.tree.map(
            lambda leaf, v=value: jnp.concatenate([leaf, jnp.full((2, LENGTH), v, leaf.dtype)]),
            examples,
        )
        close(gradient(params, Examples(padded.inputs, padded.targets, mask)), expected)


@pytest.mark.parametrize("outside", [-1, VOCABULARY, 255])
def test_a_token_outside_the_vocabulary_gives_nan_in_its_row(outside):
    inputs = tokens(2, LENGTH).at[0, 2].set(outside)
    logits = np.asarray(apply(MODEL, start(MODEL), inputs))
    assert np.isnan(logits[0, 2:]).all() and np.isfinite(logits[1]).all()


@pytest.mark.parametrize("wrong", ["vocabulary", "width", "depth", "heads", "length"])
def test_sizes_must_be_positive(wrong):
    sizes = {"vocabulary": 11, "width": 8, "depth": 2, "heads": 2, "length": 6}
    with pytest.raises(StructureError, match=f"{wrong} must be a whole number"):
        models.transformer(**sizes | {wrong: 0})


def test_heads_must_divide_the_width():
    with pytest.raises(StructureError, match=r"transformer\(..., width=9, heads=3"):
        models.transformer(11, 8, 2, 3, 6)


@pytest.mark.parametrize("shape", [(6,), (2, 7), (2, 0), (2, 6, 1), ()])
def test_refuses_tokens_of_other_shapes(shape):
    with pytest.raises(StructureError, match=r"shape \(rows, positions\) with 1 to 6 positions"):
        jax.eval_shape(MODEL.apply, start(MODEL), jnp.zeros(shape, jnp.int32), None, None)


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_refuses_what_are_not_tokens(dtype):
    with pytest.raises(StructureError, match="inputs are not tokens"):
        jax.eval_shape(MODEL.apply, start(MODEL), jnp.zeros((2, 6), dtype), None, None)


def test_refuses_a_mask_over_positions():
    with pytest.raises(StructureError, match="mask does not fit"):
        apply(MODEL, start(MODEL), tokens(2, 6), jnp.ones((2, 6), bool))
