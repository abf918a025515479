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
]
