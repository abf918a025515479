"""The cures of the adapter for PyTorch; without PyTorch, these cases are skipped."""

from sites import Case

TORCH = (
    "from innerloop.adapters import from_torch\n"
    "from innerloop.checks import optional_package\n"
    "optional_package('torchax', 'this case', 'torch')\n"
    "torch = optional_package('torch', 'this case', 'torch')\n"
    "class Count(torch.nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.register_buffer('count', torch.zeros(()))\n"
    "    def forward(self, x):\n"
    "        self.count += 1\n"
    "        return x\n"
    "ones = jax.numpy.ones((2, 3))\n"
    "def outputs(model):\n"
    "    params = il.problem.overlay(model.init(None), model.frozen)\n"
    "    given = params if model.state is None else il.Stateful(params, model.state)\n"
    "    return model.apply(given, ones, None, None)\n"
)

CASES = [
    Case(
        "adapters/_torch.py: the forward pass changes buffers",
        "outputs(from_torch(Count()))",
        (("from_torch(..., state=['count'])", "outputs(from_torch(Count(), state=['count']))"),),
        given=TORCH,
    ),
    Case(
        "adapters/_torch.py: a layer has no running averages",
        "from_torch(torch.nn.BatchNorm1d(3, momentum=None), normalisation='carried')",
        (
            (
                "from_torch(..., normalisation='transductive')",
                "from_torch(torch.nn.BatchNorm1d(3), normalisation='transductive')",
            ),
        ),
        given=TORCH,
    ),
    Case(
        "adapters/_torch.py: the module has parameters whose shapes",
        "from_torch(module)",
        (
            (
                "module(inputs), before from_torch(module)",
                "module(torch.ones((2, 3))); outputs(from_torch(module))",
            ),
        ),
        given=TORCH + "module = torch.nn.LazyLinear(2)",
    ),
    Case(
        "adapters/_torch.py: the module cannot be copied",
        "from_torch(torch.nn.utils.weight_norm(torch.nn.Linear(3, 2)))",
        (
            (
                "torch.nn.utils.parametrizations.weight_norm, in place of "
                "torch.nn.utils.weight_norm",
                "outputs(from_torch(torch.nn.utils.parametrizations.weight_norm("
                "torch.nn.Linear(3, 2))))",
            ),
        ),
        given=TORCH + "import warnings\nwarnings.simplefilter('ignore')",
    ),
    Case(
        "adapters/_network.py: the network's call has an argument",
        "from_torch(Moded())",
        (
            (
                "from_torch(..., call=lambda module, inputs: "
                "module(inputs, deterministic=not module.training))",
                "model = from_torch(Moded(), call=lambda module, inputs: "
                "module(inputs, deterministic=not module.training))\n"
                "assert (outputs(model) == 1).all()\n"
                "assert (model.learn({}, ones, None, None)[0] == 2).all()",
            ),
        ),
        given=TORCH + "class Moded(torch.nn.Module):\n"
        "    def forward(self, x, deterministic=True):\n"
        "        return x if deterministic else 2 * x\n",
    ),
]
