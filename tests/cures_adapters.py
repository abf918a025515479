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

CASES = [
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
