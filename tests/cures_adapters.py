"""The cures of adapters, and of modules of other libraries where they are no models."""

from sites import Case

NNX = (
    "from innerloop.checks import optional_package\n"
    "nnx = optional_package('flax.nnx', 'a test', extra='ecosystem')\n"
)
LINEN = NNX + "linen = optional_package('flax.linen', 'a test', extra='ecosystem')\n"
NORM = "import equinox as eqx\nnorm = eqx.nn.BatchNorm(2, 'rows', mode='batch')\n"
LINEAR = "import equinox as eqx\nmodule = eqx.nn.Linear(2, 2, key=key)\n"
DROPPED = (
    "module = nnx.Dropout(0.5, rngs=nnx.Rngs(0))\n"
    "dropped = lambda params, meta, batch, key: loss(params, meta, batch, key) + jnp.sum("
    "module(params['w']))\n"
)

SWITCHED = (
    LINEN
    + """
import equinox as eqx
from_linen, from_nnx = adapters.from_linen, adapters.from_nnx
from_equinox, from_functions = adapters.from_equinox, adapters.from_functions
inputs = jnp.ones((1, 2))
class Trained(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        return linen.Dropout(0.5, deterministic=not train)(linen.Dense(2)(x))
class Fixed(linen.Module):
    @linen.compact
    def __call__(self, x, deterministic=True):
        return linen.Dropout(0.5)(linen.Dense(2)(x), deterministic=deterministic)
class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.layer, self.dropout = nnx.Linear(2, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    def __call__(self, x, training=False):
        return self.dropout(self.layer(x), deterministic=not training)
class Inferring(eqx.Module):
    layer: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    def __call__(self, x, *, key=None, inference=True):
        return self.dropout(self.layer(x), key=key, inference=inference)
inferring = Inferring(eqx.nn.Linear(2, 2, key=key), eqx.nn.Dropout(0.5))
apply = lambda params, inputs, train=False: inputs @ params * (1 + train)
class Doubled(eqx.Module):
    w: jax.Array
    def __call__(self, x, is_training=False):
        return self.w * x * (1 + is_training)
def differs(model):
    params, x = model.init(key), jnp.ones((5, 2))
    outputs = model.apply(params, x, None, None)
    assert not (model.learn(params, x, key, None)[0] == outputs).all()
"""
)
BY_ROWS = (
    "call=lambda module, inputs, key, training: jax.vmap(lambda x, k: module(x, key=k, "
    "inference=not training))(inputs, None if key is None else jax.random.split(key, len(inputs)))"
)
BY_ROWS_WITHOUT_KEY = (
    "call=lambda module, inputs, training: jax.vmap(lambda x: module(x, is_training=training))"
    "(inputs)"
)
NOT_TRAINING = "call=lambda module, inputs, training: module(inputs, deterministic=not training)"


def left_as_it_is(call, adapter, argument):
    """The case of a network whose mode an adapter does not fill."""
    return Case(
        "adapters/_network.py: the network's call has an argument",
        f"{adapter}({call})",
        ((f"{adapter}(..., {argument})", f"differs({adapter}({call}, {argument}))"),),
        given=SWITCHED,
    )


CASES = [
    left_as_it_is("Trained(), inputs", "from_linen", "train='train'"),
    left_as_it_is("Fixed(), inputs", "from_linen", NOT_TRAINING),
    left_as_it_is(
        *("Dropped", "from_nnx"),
        "call=lambda module, inputs, training: module(inputs, training=training)",
    ),
    left_as_it_is("inferring", "from_equinox", BY_ROWS),
    left_as_it_is("Doubled(jnp.ones(2))", "from_equinox", BY_ROWS_WITHOUT_KEY),
    left_as_it_is(
        *("lambda key: jnp.ones((2, 2)), apply", "from_functions"),
        "learn=lambda params, inputs: apply(params, inputs, train=True)",
    ),
    Case(
        "adapters/_linen.py: train names an argument",
        "from_linen(Fixed(), inputs, train='deterministic')",
        ((NOT_TRAINING, f"differs(from_linen(Fixed(), inputs, {NOT_TRAINING}))"),),
        given=SWITCHED,
    ),
    Case(
        "adapters/_linen.py: the module's call has no argument",
        "from_linen(Trained(), inputs, train=True)",
        ("from_linen(..., train='train')",),
        given=SWITCHED,
    ),
    Case(
        "adapters/_linen.py: the second argument",
        "from_linen(module, variables)",
        ("from_linen(module, variables=variables)",),
        given=SWITCHED + "module = linen.Dense(2)\nvariables = module.init(key, inputs)",
    ),
    Case(
        "adapters/_linen.py: the variables have no collection params",
        "from_linen(module, variables=variables)",
        (
            (
                "from_linen(..., variables={'params': ...})",
                "from_linen(module, variables={'params': variables})",
            ),
        ),
        given=SWITCHED + "module = linen.Dense(2)\nvariables = module.init(key, inputs)['params']",
    ),
    Case(
        "adapters/_network.py: the network keeps batch statistics",
        "adapters.from_equinox(norm)",
        ("from_equinox(..., normalisation='transductive')",),
        given=NORM + "from_equinox = adapters.from_equinox",
    ),
    Case(
        "adapters/_network.py: the network keeps no batch statistics",
        "adapters.from_equinox(module, normalisation='carried')",
        ("from_equinox(..., normalisation=None)",),
        given=LINEAR + "from_equinox = adapters.from_equinox",
    ),
    Case(
        "adapters/_network.py: … does not take this module",
        "adapters.from_nnx(module)",
        ("adapters.from_equinox(module)",),
        given=NNX + LINEAR,
    ),
    Case(
        "adapters/_network.py: … does not take this module",
        "adapters.from_equinox(module)",
        ("adapters.from_linen(module, inputs)",),
        given=LINEN + "module = linen.Dense(2)",
    ),
    Case(
        "adapters/_network.py: … calls a function that makes a module",
        "adapters.from_nnx(Network)",
        ("adapters.from_nnx(lambda rngs: Network(rngs=rngs))",),
        given=NNX + "class Network(nnx.Linear):\n"
        "    def __init__(self, *, rngs):\n"
        "        super().__init__(2, 2, rngs=rngs)\n",
    ),
    Case(
        "adapters/_network.py: … calls a function that makes a module",
        "adapters.from_equinox(lambda: 0)",
        ("adapters.from_equinox(lambda key: Network(key=key))",),
        given="import equinox as eqx\nNetwork = lambda key: eqx.nn.Linear(2, 2, key=key)",
    ),
    Case(
        "checks.py: … changes a module of flax.nnx",
        "trace(meta_value_and_grad(Problem(init, dropped, loss), adaptation))",
        ("adapters.from_nnx(module)",),
        given=NNX + DROPPED,
    ),
    Case(
        "objective.py: … is not a floating-point array",
        "trace(meta_value_and_grad(problem, adaptation), module, episodes, key)",
        ("adapters.from_nnx(module).init(key)",),
        given=NNX + "module = nnx.Dropout(0.5, rngs=nnx.Rngs(0))",
    ),
    Case(
        "objective.py: … is not a floating-point array",
        "trace(meta_value_and_grad(problem, adaptation), {'net': module}, episodes, key)",
        ("adapters.from_equinox(module).init(key)",),
        given="import equinox as eqx\nmodule = eqx.nn.MLP(2, 2, 3, 1, key=key)",
    ),
]
