"""ANIL, BOIL and CAVIA: only the head is adapted, only the body, or only a small context."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import GradientDescent
from innerloop.adapters._where import SELECTION, Selection, chosen_leaves, named_leaves
from innerloop.arguments import checked
from innerloop.errors import StructureError
from innerloop.models import Model
from innerloop.models.base import MODEL
from innerloop.recipes.base import ExamplesLoss, Recipe, learned_network, learned_start


def head(params: PyTree) -> PyTree:
    """The part of the library's networks that `anil` adapts."""
    return params["head"]


def body(params: PyTree) -> PyTree:
    """The part of the library's networks that `boil` adapts."""
    return params["body"]


@checked(model=MODEL, where=SELECTION)
def anil(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.1,
    steps: int = 5,
    where: Selection = head,
) -> Recipe:
    r"""ANIL (Raghu, Raghu, Bengio and Vinyals 2020, arXiv 1909.09157): MAML of the head only.

    $$\min_{\phi} \; \mathbb{E}\, L_\text{query}(\theta_K, \phi_\text{body}), \qquad
      \theta_0 = \phi_\text{head}, \quad
      \theta_{t+1} = \theta_t - \alpha \nabla_\theta L_\text{support}(\theta_t, \phi_\text{body})$$

    Body and head are meta-learned. The defaults are those of MAML's 20-way Omniglot, whose settings
    the paper uses.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
        where: Selects the head, as in `subset`, such as `adapters.matching("layers.2")`; by default
            the `"head"` of the library's networks.

    Raises:
        StructureError: If the network has no such part, or `where` selects everything.
    """
    _require_part(model, where, "anil", "head")
    return partly_adapted(model, loss, where, rate, steps)


@checked(model=MODEL, where=SELECTION)
def boil(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.5,
    steps: int = 1,
    where: Selection = body,
) -> Recipe:
    r"""BOIL (Oh, Yoo, Kim and Yun 2021, arXiv 2008.08882): MAML of the body only.

    $$\min_{\phi} \; \mathbb{E}\, L_\text{query}(\theta_K, \phi_\text{head}), \qquad
      \theta_0 = \phi_\text{body}, \quad
      \theta_{t+1} = \theta_t - \alpha \nabla_\theta L_\text{support}(\theta_t, \phi_\text{head})$$

    so the representation has to change, whereas `anil` reuses it. Body and head are meta-learned.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
        where: Selects the body, as in `subset`, such as `~adapters.matching("layers.2")`; by
            default the `"body"` of the library's networks.

    Raises:
        StructureError: If the network has no such part, or `where` selects everything.
    """
    _require_part(model, where, "boil", "body")
    return partly_adapted(model, loss, where, rate, steps)


def _require_part(model: Model, where: Selection, recipe: str, part: str) -> None:
    """Raise `StructureError` unless `where` selects some and not all of what the model learns."""
    learned = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    has_part = isinstance(learned, dict) and bool(jax.tree.leaves(learned.get(part)))
    if where in (head, body) and not has_part:
        parts = dict.fromkeys(path.rpartition(".")[0] or path for path in named_leaves(learned))
        raise StructureError(
            f"the network learns no part with the name {part!r}",
            got=f"a network that learns {', '.join(parts) or 'nothing'}",
            expected=f"where=matching(PATH), which selects the {part}; PATH is one of these paths, "
            "or that of a part that contains them",
        )
    if all(chosen_leaves(learned, where)):
        raise StructureError(
            f"where selects everything, and {recipe} adapts a part",
            got=f"where, which selects all of {', '.join(named_leaves(learned))}",
            expected="a part of the network; maml adapts everything",
            write="maml(model, loss)",
        )


def partly_adapted(
    model: Model, loss: ExamplesLoss, where: Callable[[PyTree], PyTree], rate: float, steps: int
) -> Recipe:
    """MAML in which only the part of the parameters that `where` selects is adapted."""
    return learned_network(model, GradientDescent(optax.sgd(rate), steps), loss, where=where)


@checked(model=MODEL)
def cavia(model: Model, loss: ExamplesLoss, rate: float = 1.0, steps: int = 2) -> Recipe:
    r"""CAVIA (Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson 2019, arXiv 1810.03642).

    $$\min_\phi \; \mathbb{E}\, L_\text{query}(c_K, \phi), \qquad c_0 = 0, \quad
      c_{t+1} = c_t - \alpha \nabla_c L_\text{support}(c_t, \phi)$$

    `model` keeps the context c as `params["context"]` (see `film`); the rest of its parameters is
    φ. The defaults are those of the paper's miniImageNet.

    Departs from the paper: `film` lets the context scale and shift the features before the head.
    The paper's network does so after the third convolution; for sinusoids, the context is an
    additional input.

    Args:
        model: A network whose parameters have a context.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.

    Raises:
        StructureError: If the model has no context.
    """
    parameters = jax.eval_shape(model.init, jax.random.key(0))
    if not isinstance(parameters, dict) or "context" not in parameters:
        raise StructureError(
            "cavia needs a model with a context",
            got=f"parameters {jax.tree.structure(parameters)}",
            expected="a dict with 'context' in it",
            write="cavia(film(features, width=64, head=mlp([64, 64, 5]), context=100), loss)",
        )
    context = parameters["context"]

    def init_meta(key: PRNGKeyArray) -> PyTree:
        return {name: part for name, part in model.init(key).items() if name != "context"}

    def predict(params, meta, batch, key):
        return model.apply({**meta, "context": params}, batch.inputs, key, batch.mask)

    dtype_of = lambda meta: jnp.result_type(*jax.tree.leaves(meta))
    start = lambda meta, support, key: jnp.zeros(context.shape, dtype_of(meta))
    learn = GradientDescent(optax.sgd(rate), steps)
    frozen = {name: part for name, part in (model.frozen or {}).items() if name != "context"}
    return learned_start(start, learn, init_meta, predict, loss, frozen=frozen or None)
