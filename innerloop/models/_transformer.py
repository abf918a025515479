"""The causal transformer: a language model on integer tokens."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer
from jaxtyping import Array, ArrayLike, Bool, Float, Integer, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, checked, random_key
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.masks import blank_rows
from innerloop.models.base import Model
from innerloop.models.layers import Dense, dense, dense_init
from innerloop.models.normalisation import scale_and_shift
from innerloop.precision import at_least_float32, default_float

LECUN = jax.nn.initializers.lecun_normal()
"""The default for all matrices: standard deviation 1 / √inputs, so that layers keep the unit
variance that layer normalisation gives them, at any width."""

EPSILON = 1e-5
"""Added to every variance of a layer normalisation (GPT-2's value). Far below the variance of the
embeddings, unlike that of `innerloop.models.normalisation`, which is for images."""

HIDDEN = -1e30
"""Score of a key that a query may not see. Its softmax weight is exactly 0, and, unlike with -inf,
so is every derivative of it."""


@checked(
    vocabulary=at_least(1, such_as=256),
    width=at_least(1, such_as=64),
    depth=at_least(1, such_as=2),
    heads=at_least(1, such_as=4),
    length=at_least(1, such_as=128),
)
def transformer(
    vocabulary: int,
    width: int,
    depth: int,
    heads: int,
    length: int,
    *,
    checkpoint_blocks: bool = False,
    weights: Initializer = LECUN,
) -> Model:
    r"""A decoder-only transformer, normalised before each layer (GPT-2, Radford et al. 2019).

    Tokens `(rows, positions)` to next-token logits `(rows, positions, vocabulary)`, for up to
    `length` positions. Logits at a position depend on the tokens up to it, in the same row.
    `cross_entropy` takes them with targets `(rows, positions)`.

    $$x = \text{tokens} + \text{positions};\quad
      x \leftarrow x + \text{attention}(\text{norm}(x)),\;
      x \leftarrow x + \text{mlp}(\text{norm}(x)) \text{ per block};\quad
      \text{head}(\text{norm}(x))$$

    Parameters, where every leaf of `blocks` has a leading axis of size `depth`:

        {"body": {"tokens": (vocabulary, width), "positions": (length, width),
                  "blocks": {"attention_norm": {"scale", "shift"},
                             "query_key_value": (width, 3 width),
                             "attention_out": {"weights": (width, width), "bias"},
                             "mlp_norm": {"scale", "shift"},
                             "mlp_in": {"weights": (width, 4 width), "bias"},
                             "mlp_out": {"weights": (4 width, width), "bias"}},
                  "norm": {"scale", "shift"}},
         "head": {"weights": (width, vocabulary), "bias"}}

    Normalisation: none over rows. Softmax and statistics are computed in float32 at least. There is
    no dropout; the key is not used.

    Args:
        vocabulary: The number of tokens, which are integers from 0 to `vocabulary - 1`. A token
            outside this range gives NaN in its row, because its value cannot raise under `jit`.
        width: The width of the embeddings. The hidden layer of each block's mlp (gelu, in its tanh
            form) is 4 `width` wide.
        depth: The number of blocks.
        heads: The number of attention heads, each `width / heads` wide.
        length: The largest number of positions, each of which has a learned embedding.
        checkpoint_blocks: Whether reverse mode stores only the inputs of the blocks and computes
            the inside of each block again: less memory, one more forward pass, the same numbers.
        weights: Initialises the matrices. Those that write to the residual stream are then divided
            by √(2 `depth`), where 2 `depth` is the number of writes. Each of the two embeddings
            starts from N(0, 1/2), and biases start at zero.

    Raises:
        StructureError: If a size is not a positive integer or the heads do not divide the width,
            and while tracing if the inputs are not integers of shape `(rows, positions)` with 1 to
            `length` positions.
    """
    if width % heads:
        raise StructureError(
            "the heads do not divide the width",
            got=f"width={width}, heads={heads}",
            expected="a width that is a multiple of heads",
            write=f"transformer(..., width={-(-width // heads) * heads}, heads={heads})",
        )

    def block_init(key: PRNGKeyArray) -> PyTree[Array]:
        attention_key, attention_out_key, in_key, out_key = jax.random.split(key, 4)

        def residual_init(key: PRNGKeyArray, inputs: int) -> Dense:
            layer = dense_init(key, inputs, width, weights)
            return layer | {"weights": layer["weights"] / (2 * depth) ** 0.5}

        return {
            "attention_norm": scale_and_shift(width),
            # No bias: that of the keys cancels in the softmax, so it would be a parameter without
            # a gradient, and the normalisation's shift, times these weights, is that of the others.
            "query_key_value": weights(attention_key, (width, 3 * width), default_float()),
            "attention_out": residual_init(attention_out_key, width),
            "mlp_norm": scale_and_shift(width),
            "mlp_in": dense_init(in_key, width, 4 * width, weights),
            "mlp_out": residual_init(out_key, 4 * width),
        }

    @checked("init", key=random_key())
    def init(key: PRNGKeyArray) -> PyTree[Array]:
        tokens_key, positions_key, blocks_key, head_key = jax.random.split(key, 4)
        dtype = default_float()
        embedding = jax.nn.initializers.normal(0.5**0.5)
        body = {
            "tokens": embedding(tokens_key, (vocabulary, width), dtype),
            "positions": embedding(positions_key, (length, width), dtype),
            # vmap, not a longer shape: an initialiser would count the blocks as inputs.
            "blocks": jax.vmap(block_init)(jax.random.split(blocks_key, depth)),
            "norm": scale_and_shift(width),
        }
        return {"body": body, "head": dense_init(head_key, width, vocabulary, weights)}

    def apply(params, inputs, key, mask) -> Float[Array, "rows positions vocabulary"]:
        body = params["body"]
        tokens = blank_rows(_tokens(inputs, length), mask)
        rows, positions = tokens.shape
        # NaN for a token outside of the table, negative ones too.
        table = body["tokens"].at[tokens]
        embedded = table.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        embedded = embedded + body["positions"][None, :positions]
        causal = jnp.tril(jnp.ones((positions, positions), jnp.bool_))

        def block(x: Array, params: PyTree[Array]) -> tuple[Array, None]:
            normalised = _layer_norm(params["attention_norm"], x)
            projected = (normalised @ params["query_key_value"]).reshape(rows, positions, 3 * width)
            attended = _attention(projected, causal, heads).reshape(rows * positions, width)
            x = x + dense(params["attention_out"], attended)
            hidden = dense(params["mlp_in"], _layer_norm(params["mlp_norm"], x))
            return x + dense(params["mlp_out"], jax.nn.gelu(hidden, approximate=True)), None

        if checkpoint_blocks:
            # A scan's passes are loops of their own, between which XLA finds nothing in common.
            block = jax.checkpoint(block, prevent_cse=False)
        # Rows and positions as one axis: under vmap, products with several such axes are slow.
        x, _ = lax.scan(block, embedded.reshape(rows * positions, width), body["blocks"])
        logits = dense(params["head"], _layer_norm(body["norm"], x))
        return logits.reshape(rows, positions, vocabulary)

    return Model(init, apply, normalisation="none")


def _attention(
    query_key_value: Float[Array, "rows positions three_widths"],
    causal: Bool[Array, "positions positions"],
    heads: int,
) -> Float[Array, "rows positions width"]:
    r"""$\text{softmax}(q k^\top / \sqrt{d})\, v$ per head, over the keys that `causal` leaves."""
    rows, positions, three_widths = query_key_value.shape
    size = three_widths // (3 * heads)
    split = query_key_value.reshape(rows, positions, 3, heads, size)
    query, key, value = (split[:, :, i] for i in range(3))
    scores = at_least_float32(jnp.einsum("rqhd,rkhd->rhqk", query / size**0.5, key))
    shares = jax.nn.softmax(jnp.where(causal[None, None], scores, HIDDEN), axis=-1)
    attended = jnp.einsum("rhqk,rkhd->rqhd", shares.astype(value.dtype), value)
    return attended.reshape(rows, positions, heads * size)


def _layer_norm(
    params: dict[str, Array], x: Float[Array, "entries width"]
) -> Float[Array, "entries width"]:
    """`(x - mean) / sqrt(variance + EPSILON) * scale + shift`, over the width of each entry."""
    wide = at_least_float32(x)
    centred = wide - jnp.mean(wide, axis=1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=1, keepdims=True)
    normalised = (centred * lax.rsqrt(variance + EPSILON)).astype(x.dtype)
    return normalised * params["scale"][None] + params["shift"][None]


def _tokens(inputs: ArrayLike, length: int) -> Integer[Array, "rows positions"]:
    """The inputs as an array, after a check of their type and shape."""
    tokens = jnp.asarray(inputs)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise StructureError(
            "the transformer's inputs are not tokens",
            got=describe(tokens),
            expected="integers from 0 to vocabulary - 1, of an integer type from where they are "
            "drawn; numbers from 0 to 1 are pixels",
        )
    if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= length:
        raise StructureError(
            "the tokens do not fit the transformer",
            got=describe(tokens),
            expected=f"shape (rows, positions) with 1 to {length} positions",
        )
    return tokens
