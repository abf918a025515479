"""PyTorch modules as models: the same numbers as PyTorch itself, derivatives included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.adapters import from_torch
from innerloop.errors import StructureError

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
pytest.importorskip("torchax", reason="the extra 'torch' is not installed")
nn = torch.nn
functional = torch.nn.functional

RATE, STEPS, TASKS, WAYS = 0.1, 2, 3, 4
KEY = jax.random.key(0)
BATCHES = np.random.default_rng(0)


def mlp():
    return nn.Sequential(
        nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, WAYS)
    )


def convolutions():
    block = lambda inputs: [
        nn.Conv2d(inputs, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*block(2), *block(5), nn.Flatten(), nn.Linear(20, WAYS))


NETWORKS = {"mlp": (mlp, (6,)), "convolutions": (convolutions, (2, 8, 8))}


def double(module):
    torch.manual_seed(0)
    with torch.no_grad():
        module = module().double()
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer += 0.3 * torch.rand_like(buffer)
    return module


def normal(*shape):
    return BATCHES.normal(size=shape)


def at(tree, name):
    for part in name.split("."):
        tree = tree[part]
    return np.asarray(tree)


def apply(model, inputs, params=None, mask=None, key=None, network="apply"):
    """The outputs, and for `learn` the state, with the parameters as the core gives them."""
    whole = il.problem.overlay(model.init(KEY) if params is None else params, model.frozen)
    given = whole if model.state is None else il.Stateful(whole, model.state)
    return getattr(model, network)(given, inputs, key, mask)


def meta_gradient_in_torch(module, support, query, labels, policy):
    """MAML by a double backward pass, task by task; the mean running averages after the tasks."""
    params, total, after = dict(module.named_parameters()), 0, []
    for inputs, tests in zip(support, query, strict=True):
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

        def loss(params, inputs, training, buffers=buffers):
            module.train(training)
            given = (params, buffers)  # running averages are updated in place
            outputs = torch.func.functional_call(module, given, (torch.tensor(inputs),))
            return functional.cross_entropy(outputs, torch.tensor(labels))

        fast = params
        for _ in range(STEPS):
            value = loss(fast, inputs, training=policy != "frozen")
            grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            fast = {n: p - RATE * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        total = total + loss(fast, tests, training=policy == "transductive") / TASKS
        after.append(buffers)
    grads = torch.autograd.grad(total, list(params.values()))
    averages = {name: sum(each[name] for each in after) / TASKS for name in after[0]}
    return total.item(), dict(zip(params, (grad.numpy() for grad in grads), strict=True)), averages


@pytest.mark.parametrize("policy", ["transductive", "carried", "frozen"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_meta_gradient_is_that_of_a_double_backward_pass(x64, name, policy):
    make, shape = NETWORKS[name]
    if name == "mlp" and policy != "transductive":
        pytest.skip("without batch statistics, the policies are one")
    module = double(make)
    model = from_torch(module, normalisation=policy)
    support, query = normal(2, TASKS, 2 * WAYS, *shape)
    labels = np.tile(np.arange(WAYS), 2)
    expected, expected_grads, averages = meta_gradient_in_torch(
        module, support, query, labels, policy
    )
    recipe = il.recipes.maml(model, il.models.cross_entropy, RATE, STEPS)
    many = np.tile(labels, (TASKS, 1))
    episodes = jax.tree.map(
        jnp.asarray, il.Episode(il.Examples(support, many), il.Examples(query, many))
    )
    value_and_grad = il.meta_value_and_grad(recipe.problem, recipe.adaptation)
    (value, aux), grads = jax.jit(value_and_grad)(recipe.init_meta(KEY), episodes, KEY)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    largest = max(np.abs(grad).max() for grad in expected_grads.values())
    for leaf, expected_grad in expected_grads.items():
        # A bias before batch normalisation has no gradient: its rounding errors are held to the
        # largest entry of all.
        scale = max(np.abs(expected_grad).max(), 1e-6 * largest)
        assert np.abs(at(grads, leaf) - expected_grad).max() < 1e-5 * scale, leaf
    if policy == "carried":
        for leaf, states in aux.state.items():
            np.testing.assert_allclose(states.mean(0), averages[leaf].numpy(), rtol=1e-9)


def normalised():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Linear(4, 2))


def in_torch(module, inputs):
    with torch.no_grad():
        return module(torch.tensor(inputs)).numpy()


def test_transductive_statistics_are_those_of_the_rows_at_hand(x64):
    module, inputs = double(normalised), normal(5, 3)
    model = from_torch(module, normalisation="transductive")
    assert (model.normalisation, model.state, model.frozen) == ("transductive", None, None)
    expected = in_torch(module.train(), inputs)
    np.testing.assert_allclose(apply(model, inputs), expected, rtol=1e-10)
    outputs, state = apply(model, inputs, network="learn")
    assert state is None
    np.testing.assert_allclose(outputs, expected, rtol=1e-10)


def test_carried_averages_are_updated_in_training_and_used_in_predictions(x64):
    module, inputs = double(normalised), normal(5, 3)
    model = from_torch(module, normalisation="carried")
    assert model.normalisation == "carried"
    assert model.state.keys() == {"1.running_mean", "1.running_var"}
    np.testing.assert_allclose(apply(model, inputs), in_torch(module.eval(), inputs), rtol=1e-10)
    for _ in range(3):
        outputs, state = apply(model, inputs, network="learn")
        np.testing.assert_allclose(outputs, in_torch(module.train(), inputs), rtol=1e-10)
        for name, average in module.named_buffers():
            if name in state:
                np.testing.assert_allclose(state[name], average.numpy(), rtol=1e-10)
        model = model._replace(state=state)
    np.testing.assert_allclose(apply(model, inputs), in_torch(module.eval(), inputs), rtol=1e-10)


def test_frozen_averages_never_change(x64):
    module, inputs = double(normalised), normal(5, 3)
    model = from_torch(module, normalisation="frozen")
    assert (model.normalisation, model.state) == ("frozen", None)
    averages = model.frozen["1"]
    np.testing.assert_array_equal(averages["running_mean"], module[1].running_mean.numpy())
    assert model.init(KEY)["1"]["running_mean"] is None
    expected = in_torch(module.eval(), inputs)
    np.testing.assert_allclose(apply(model, inputs), expected, rtol=1e-10)
    np.testing.assert_allclose(apply(model, inputs, network="learn")[0], expected, rtol=1e-10)


@pytest.mark.parametrize("policy", ["transductive", "carried", "frozen"])
def test_padding_has_no_effect(x64, policy):
    model = from_torch(double(convolutions), normalisation=policy)
    inputs = normal(4, 2, 8, 8)
    padded = np.concatenate([inputs, np.full((3, 2, 8, 8), np.nan)])
    mask = jnp.arange(7) < 4
    for network in ("apply", "learn"):
        expected = apply(model, inputs, network=network)
        found = apply(model, padded, mask=mask, network=network)
        if network == "learn":
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found[1], expected[1]
            )
            expected, found = expected[0], found[0]
        np.testing.assert_allclose(found[:4], expected, rtol=1e-10)


def test_statistics_of_other_rows_than_those_of_the_mask_are_refused():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x.reshape(-1, 3)).reshape(x.shape)

    model = from_torch(Patches(), normalisation="transductive")
    inputs = normal(4, 2, 3).astype("f")
    assert apply(model, inputs).shape == (4, 2, 3)
    with pytest.raises(StructureError, match=r"other rows.*f32\[8,3\].*mask of 4 rows"):
        apply(model, inputs, mask=jnp.ones(4, bool))


def test_dropout_draws_by_the_key_of_the_step():
    model = from_torch(nn.Sequential(nn.Identity(), nn.Dropout(0.25)))
    assert (model.normalisation, model.frozen, model.state) == ("none", None, None)
    ones = np.ones((100, 100), "f")
    np.testing.assert_array_equal(apply(model, ones), ones)
    outputs, _ = apply(model, ones, key=KEY, network="learn")
    assert {*np.unique(outputs)} == {0, np.float32(1 / 0.75)}
    assert abs(float(jnp.mean(outputs == 0)) - 0.25) < 0.02
    again, _ = apply(model, ones, key=KEY, network="learn")
    np.testing.assert_array_equal(outputs, again)
    other, _ = apply(model, ones, key=jax.random.key(1), network="learn")
    assert 0.3 < float(jnp.mean(outputs != other)) < 0.45
    with pytest.raises(StructureError, match="draws at random, and this pass has no key"):
        apply(model, ones, network="learn")


class Odds(nn.Module):
    """A frozen part, a tied weight, an integer buffer, a constant, and a part without gradient."""

    def __init__(self):
        super().__init__()
        self.fixed = nn.Linear(3, 3).requires_grad_(False)
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def forward(self, x):
        x = self.fixed(x)[:, self.order]
        with torch.no_grad():
            target = self.first(x) * self.scale
        x = self.second(torch.tanh(self.first(x)))
        return x * target + x.detach() + torch.arange(3, dtype=x.dtype)


def test_frozen_tied_and_constant_parts(x64):
    module, inputs = double(Odds), normal(4, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = from_torch(module)
    params = model.init(KEY)
    assert params["fixed"] == {"weight": None, "bias": None}
    assert params["order"] is None
    assert params["second"].keys() == {"bias"}
    assert jnp.issubdtype(model.frozen["order"].dtype, jnp.integer)
    assert model.frozen["first"] == {"weight": None, "bias": None}

    outputs = module(torch.tensor(inputs))
    np.testing.assert_allclose(apply(model, inputs), outputs.detach().numpy(), rtol=1e-10)
    learned = {name: p for name, p in module.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(outputs.square().sum(), list(learned.values()))
    grads = jax.grad(lambda params: jnp.sum(apply(model, inputs, params) ** 2))(params)
    for name, grad in zip(learned, expected, strict=True):
        np.testing.assert_allclose(at(grads, name), grad.numpy(), rtol=1e-10)

    with torch.no_grad():
        module.first.weight += 1
    after = apply(model, inputs)
    np.testing.assert_allclose(after, outputs.detach().numpy(), rtol=1e-10)
    assert all(torch.equal(before[name], module.state_dict()[name]) for name in ("order",))
    assert module.training


class Carry(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("sum", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int32))

    def forward(self, x):
        if self.in_place:
            self.sum += x.sum(0)
            self.count.add_(1)
        else:
            self.sum, self.count = self.sum + x.sum(0), self.count + 1
        return x + self.sum


@pytest.mark.parametrize("in_place", [True, False])
def test_buffers_that_the_network_changes_are_named(in_place):
    module, inputs = Carry(in_place), np.ones((2, 3), "f")
    model = from_torch(module, state=["sum", "count"])
    outputs, state = jax.jit(model.learn)(il.Stateful({}, model.state), inputs, None, None)
    np.testing.assert_array_equal(outputs, np.full((2, 3), 3.0))
    np.testing.assert_array_equal(state["sum"], np.full(3, 2.0))
    assert state["count"] == 1
    assert module.count == 0
    with pytest.raises(StructureError, match=r"changes buffers.*\['sum', 'count'\]"):
        apply(from_torch(module), inputs)
    with pytest.raises(StructureError, match=r"does not have.*\['sun'\].*\['sum', 'count'\]"):
        from_torch(module, state=["sun"])


def test_whole_numbers_are_passed_on():
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    inputs = np.array([[0, 4], [1, 2]])
    np.testing.assert_allclose(
        apply(from_torch(module), inputs), in_torch(module, inputs), rtol=1e-5, atol=1e-6
    )


def test_the_parameters_decide_the_precision():
    model = from_torch(nn.Linear(3, 2))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.init(KEY))
    assert apply(model, normal(4, 3), params).dtype == jnp.bfloat16


CONVOLUTIONS = [
    nn.Conv2d(2, 3, 3, stride=2, padding=1),
    nn.Conv2d(2, 3, (1, 4), stride=(2, 1), padding=(0, 2), dilation=(1, 2), bias=False),
    nn.Conv2d(2, 4, 3, groups=2),
    nn.Conv2d(2, 3, 3, padding="same"),
    nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding="valid"),
    nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
    nn.ConvTranspose2d(2, 3, 3, stride=2),
    nn.Conv2d(2, 3, 4, stride=4),
    nn.MaxPool2d(3, stride=2, padding=1),
    nn.MaxPool2d((2, 1), dilation=(1, 2)),
    nn.MaxPool2d(3, ceil_mode=True),
    nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(1),
    nn.InstanceNorm2d(2),
    nn.GroupNorm(2, 2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_layers_of_images(x64, layer):
    module, inputs = layer.double(), normal(2, 2, 9, 10)
    given = torch.tensor(inputs, requires_grad=True)
    outputs = module(given)
    model = from_torch(module)
    np.testing.assert_allclose(
        apply(model, inputs), outputs.detach().numpy(), rtol=1e-9, atol=1e-12
    )
    (expected,) = torch.autograd.grad(outputs.pow(3).sum(), given)
    grads = jax.grad(lambda inputs: jnp.sum(apply(model, inputs) ** 3))(jnp.asarray(inputs))
    np.testing.assert_allclose(grads, expected.numpy(), rtol=1e-8, atol=1e-10)


def test_sequences(x64):
    module = nn.Conv1d(2, 3, 3, stride=2, dilation=2).double()
    inputs = normal(2, 2, 9)
    np.testing.assert_allclose(apply(from_torch(module), inputs), in_torch(module, inputs))


def test_attention_differentiates_twice(x64):
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    inputs = normal(2, 4, 8)
    model = from_torch(module)
    np.testing.assert_allclose(apply(model, inputs), in_torch(module.eval(), inputs), rtol=1e-8)
    squares = lambda inputs: jnp.sum(apply(model, inputs) ** 3)
    inner = jax.grad(lambda inputs: jnp.sum(jax.grad(squares)(inputs) ** 2))(jnp.asarray(inputs))
    given = torch.tensor(inputs, requires_grad=True)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        (first,) = torch.autograd.grad(module(given).pow(3).sum(), given, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), given)
    np.testing.assert_allclose(inner, second.numpy(), rtol=1e-6, atol=1e-8)


class Changed(nn.Module):
    """A network whose result a function changes in place, or replaces."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = nn.Linear(3, 2), change

    def forward(self, x):
        y = self.layer(x) * 1
        replaced = self.change(y)
        return y if replaced is None else replaced


def change(operation, result=lambda y: None):
    """The function that an operation in place and a result make."""
    return lambda y: (operation(y), result(y))[1]


def stale(y):
    before = y.view(-1)
    y.mul_(2)
    return before


def halves(y):
    with torch.no_grad():
        first, second = y.chunk(2, 1)
        first.sigmoid_()
        return first + second, y


LOST = {
    "view": (change(lambda y: y.view(-1).mul_(2)), "mul_ changes"),
    "reshape": (change(lambda y: y.reshape(2, 4).add_(1)), "add_ changes"),
    "flatten": (change(lambda y: y.flatten().mul_(2)), "mul_ changes"),
    "an index of a view": (change(lambda y: y.t()[0].add_(1)), "add_ changes"),
    "a view of an index": (change(lambda y: y[:, 0].view(-1).add_(1)), "add_ changes"),
    "entries of a view": (change(lambda y: y.T.__setitem__(0, 5)), "assignment to its entries"),
    "unsqueeze": (change(lambda y: y.unsqueeze(0).add_(1)), "add_ changes"),
    "transpose": (change(lambda y: y.transpose(0, 1).mul_(3)), "mul_ changes"),
    "permute": (change(lambda y: y.permute(1, 0).mul_(3)), "mul_ changes"),
    "narrow": (change(lambda y: y.narrow(1, 0, 1).mul_(3)), "mul_ changes"),
    "squeeze": (change(lambda y: y.squeeze().mul_(3)), "mul_ changes"),
    "select": (change(lambda y: y.select(1, 0).fill_(0)), "fill_ changes"),
    "detach": (change(lambda y: y.detach().mul_(2)), "mul_ changes"),
    "in place by an argument": (
        change(lambda y: functional.relu(y.view(-1), inplace=True)),
        "relu_ changes",
    ),
    "read by an operation": (
        change(lambda y: y.view(-1).mul_(2), lambda y: y + 1),
        "add reads the other",
    ),
    "a view that is read after a change": (stale, "mul_ changes.*the end of the forward pass"),
    "a part": (lambda y: halves(y)[1], "sigmoid_ changes"),
}


@pytest.mark.parametrize(("change", "message"), LOST.values(), ids=LOST)
def test_a_change_in_place_that_would_be_lost_is_refused(change, message):
    with pytest.raises(StructureError, match=f"one memory in PyTorch.*{message}"):
        apply(from_torch(Changed(change)), np.ones((4, 3), "f"))


KEPT = {
    "an index": lambda y: y[:, 0].add_(1).sum() * 0 + y,
    "entries of an index": change(lambda y: y[1].__setitem__(0, 5)),
    "the base, with a new view": change(lambda y: y.mul_(2), lambda y: y.view(-1)),
    "a view whose base is not read": lambda y: functional.relu(y.flatten(), inplace=True),
    "the shape of an old view": lambda y: (y.view(-1), y.mul_(2))[0].size(0) * y,
    "a copy of a view": change(lambda y: y.t().clone().mul_(2)),
    "parts": lambda y: halves(y)[0],
    "the advice": change(lambda y: y.__setitem__(..., y.view(-1).mul(2).view(y.shape))),
}


@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT)
def test_changes_in_place_that_are_not_lost_are_those_of_pytorch(x64, change):
    module, inputs = Changed(change).double(), normal(4, 3)
    np.testing.assert_allclose(apply(from_torch(module), inputs), in_torch(module, inputs))


ANY_ROWS = {
    "groups": lambda y: functional.group_norm(y, 1),
    "as another": lambda y: y.mean(0, keepdim=True).expand_as(y).sum(0) + y,
    "broadcast": lambda y: torch.broadcast_tensors(y.mean(0), y)[0].sum(0) + y,
    "a mean over rows": lambda y: y * functional.kl_div(y, y.softmax(1), reduction="batchmean"),
    "flat": lambda y: y.unsqueeze(1).flatten().reshape(-1, 2),
}


def exported(change):
    """The network of the change, and its program for any number of rows."""
    model = from_torch(Changed(change))
    (count,) = jax.export.symbolic_shape("count")
    inputs = jax.ShapeDtypeStruct((count, 3), jnp.float32)
    return model, jax.export.export(jax.jit(lambda inputs: apply(model, inputs)))(inputs)


@pytest.mark.parametrize("change", ANY_ROWS.values(), ids=ANY_ROWS)
def test_a_program_for_any_number_of_rows(change):
    model, program = exported(change)
    inputs = normal(5, 3).astype("f")
    found, expected = program.call(inputs), apply(model, inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [lambda y: y.size(0), lambda y: y.numel(), lambda y: y.shape[0]])
def test_a_number_of_rows_that_the_module_reads_is_not_exported(size):
    with pytest.raises(TypeError):
        exported(lambda y: y / size(y))


@pytest.mark.parametrize("policy", ["transductive", "carried", "frozen"])
def test_synchronised_statistics_are_those_of_the_rows(x64, policy):
    layers = lambda norm: nn.Sequential(nn.Linear(3, 4), norm(4), nn.Linear(4, 2)).double()
    module, inputs = layers(nn.SyncBatchNorm), normal(5, 3)
    plain = layers(nn.BatchNorm1d)
    plain.load_state_dict(module.state_dict())
    found, expected = (
        apply(from_torch(each, normalisation=policy), inputs, network="learn")
        for each in (module, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)


class Moded(nn.Module):
    def forward(self, x, deterministic=True):
        return x if deterministic else 2 * x


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


WRONG = {
    "no module": (lambda: from_torch(jnp.tanh), "does not take this module.*a torch.nn.Module"),
    "no policy": (lambda: from_torch(normalised()), "only you can say what they are to be"),
    "no averages": (
        lambda: from_torch(nn.BatchNorm1d(3, track_running_stats=False), normalisation="carried"),
        "no running averages that the policy 'carried' can use",
    ),
    "cumulative averages": (
        lambda: from_torch(nn.BatchNorm1d(3, momentum=None), normalisation="carried"),
        "no running averages.*a momentum",
    ),
    "averages of instances": (
        lambda: from_torch(nn.InstanceNorm1d(3, track_running_stats=True), normalisation="carried"),
        "no running averages that",
    ),
    "another policy": (
        lambda: from_torch(normalised(), normalisation="batch"),
        "normalisation must be.*'transductive'",
    ),
    "no shape yet": (lambda: from_torch(nn.LazyLinear(2)), "shapes its first call decides.*weight"),
    "complex": (lambda: from_torch(Complex()), "complex parameters"),
    "a call of other arguments": (
        lambda: from_torch(nn.Linear(3, 2), call=lambda module, inputs, training: inputs),
        r"from_torch does not know all arguments.*such as call=lambda module, inputs: module",
    ),
    "a forward pass of other arguments": (
        lambda: from_torch(nn.Bilinear(3, 3, 2)),
        r"from_torch does not know all arguments.*input2",
    ),
    "a mode": (lambda: from_torch(Moded()), "argument deterministic, which from_torch would leave"),
    "two outputs": (
        lambda: apply(from_torch(Pair()), np.ones((2, 3), "f")),
        "does not return one tensor",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(call, message):
    with pytest.raises(StructureError, match=message):
        call()


def test_the_call_can_be_given(x64):
    module, inputs = nn.Conv2d(2, 3, 3).double(), normal(2, 5, 6, 2)
    call = lambda module, inputs: module(inputs.permute(0, 3, 1, 2)).flatten(1)
    model = from_torch(module, call=call)
    assert model.init(KEY).keys() == {"weight", "bias"}
    expected = call(module, torch.tensor(inputs)).detach().numpy()
    np.testing.assert_allclose(apply(model, inputs), expected, rtol=1e-10)


def test_gradient_descent_on_a_network_without_policies():
    """A network of PyTorch goes through a recipe and a training like one of the library."""
    model = from_torch(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)))
    recipe = il.recipes.maml(model, il.models.mean_squared_error, 0.01, 1)
    tasks = il.tasks.SinusoidTasks(5, 5)
    outcome = il.fit(
        recipe.estimator(tasks, batch=4),
        recipe.init_meta,
        optimizer=optax.adam(1e-2),
        steps=3,
        key=KEY,
    )
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), outcome.meta, model.init(KEY))
    assert all(jax.tree.leaves(moved))
