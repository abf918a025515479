"""PyTorch modules as models: torchax runs their forward pass on JAX arrays."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adapters._torch_operations import environment
from innerloop.arguments import checked, one_of, optional
from innerloop.checks import describe, optional_package
from innerloop.errors import StructureError
from innerloop.masks import blank_rows
from innerloop.models.base import Model, model_inputs
from innerloop.precision import default_float
from innerloop.problem import Stateful

POLICIES = ("transductive", "carried", "frozen")

Named = dict[str, Any]
"""Arrays or tensors by their names in the module, such as `"layer1.0.weight"`."""


@checked(normalisation=optional(one_of(*POLICIES)))
def from_torch(module: Any, normalisation: str | None = None, state: Sequence[str] = ()) -> Model:
    """A PyTorch module as a model, with its weights as a tree of JAX arrays.

    torchax runs the forward pass on JAX arrays, so JAX compiles the network, batches it over tasks
    and differentiates it any number of times. The module itself is copied and never changed.

    Parameters: nested dicts along the names of the module, so `params["layer1"]["0"]["weight"]` is
    the parameter `layer1.0.weight`. `init` returns the weights of the module and does not use its
    key. Parameters with `requires_grad=False`, and buffers, of any dtype, are frozen.

    `learn` runs the module in training mode, where dropout draws with the key of the inner step.
    `apply` runs it in evaluation mode. Inputs have the layout of the module, which for images
    usually is `(rows, channels, height, width)`; whole numbers are passed on as they are.

    Departs from PyTorch: JAX differentiates the forward pass, so the `backward` of a
    `torch.autograd.Function` is not used. Running variances have the mask's number of rows in
    their denominator. A branch on the values of a tensor raises JAX's error, because JAX traces
    the forward pass. On CPU, a convolution of images is one matrix product, as in `il.models`,
    which gives the same numbers.

    Args:
        module: A `torch.nn.Module` whose `forward` takes one tensor and returns one, both with one
            row for each example.
        normalisation: The policy of layers with batch statistics, which must be named if there are
            any and has no effect otherwise. `"transductive"`: statistics of the rows at hand, in
            training and in predictions. `"carried"`: training uses the statistics of the rows at
            hand and updates the running averages, which are the model state; predictions use the
            running averages. `"frozen"`: the running averages of the module, everywhere.
        state: Names of further buffers that the forward pass itself changes, such as
            `["cell.carry"]`. They become a part of the model state.

    Raises:
        RunError: If PyTorch or torchax is not installed.
        StructureError: If `module` is not a PyTorch module, if its layers do not fit the policy, or
            if a name in `state` is not that of a buffer; while tracing, if the forward pass changes
            another buffer, does not return one tensor, or draws at random without a key.
    """
    optional_package("torchax", "from_torch", "torch")
    torch = optional_package("torch", "from_torch", "torch")
    if not isinstance(module, torch.nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise StructureError(
            "from_torch takes a PyTorch module", got=describe(module), expected="a torch.nn.Module"
        )
    learning, predicting = _copies(module)
    averages = _set_policy(torch, normalisation, learning, predicting)
    buffers = [name for name, _ in learning.named_buffers()]
    if unknown := sorted(set(state) - {*buffers}):
        raise StructureError(
            "the model state names buffers that the module does not have",
            got=f"state={unknown}",
            expected=f"some of {buffers}",
        )
    arrays = {name: _to_jax(tensor) for name, tensor in _tensors(learning).items()}
    learned = {name for name, tensor in learning.named_parameters() if tensor.requires_grad}
    moved = {*state, *(averages or [] if normalisation == "carried" else [])}
    names = [name for name in arrays if name not in moved]
    fixed = [name for name in names if name not in learned]

    def run(network: Any, params: PyTree, inputs: Any, key: PRNGKeyArray | None, mask: Any):
        of_state = params.state if isinstance(params, Stateful) else {}
        tree = params.params if isinstance(params, Stateful) else params
        given = {name: _at(tree, name) for name in names} | of_state
        outputs, after = _call(network, given, _rows(inputs, given, mask), key, mask)
        if changed := [name for name in fixed if after[name] is not given[name]]:
            raise StructureError(
                "the forward pass changes buffers that are not a part of the model state",
                got=f"{changed} changed",
                expected="these names in `state`",
                write=f"from_torch(module, state={[*state, *changed]})",
            )
        return outputs, {name: after[name] for name in of_state}

    def learn(params, inputs, key, mask):
        outputs, after = run(learning, params, inputs, key, mask)
        return outputs, after if moved else None

    frozen = _nested({name: None if name in learned else arrays[name] for name in names})
    start = _nested({name: arrays[name] if name in learned else None for name in names})
    return Model(
        init=lambda key: start,
        apply=lambda params, inputs, key, mask: run(predicting, params, inputs, key, mask)[0],
        normalisation="none" if averages is None or normalisation is None else normalisation,
        frozen=frozen if fixed else None,
        state={name: arrays[name] for name in sorted(moved)} or None,
        learn=learn,
    )


def _copies(module: Any) -> tuple[Any, Any]:
    """The module in training mode and in evaluation mode; both share the tensors of the module."""
    tensors = [*module.parameters(), *module.buffers()]
    learning, predicting = (
        copy.deepcopy(module, {id(tensor): tensor for tensor in tensors}) for _ in range(2)
    )
    return learning.train(), predicting.eval()


def _set_policy(torch: Any, policy: str | None, learning: Any, predicting: Any) -> list[str] | None:
    """Sets the modes of the layers with batch statistics to those of the policy.

    Returns:
        The names of the running averages; None if no layer has batch statistics.
    """
    averages, found = [], False
    for (name, in_training), in_prediction in zip(
        learning.named_modules(), predicting.modules(), strict=True
    ):
        if not isinstance(in_training, torch.nn.modules.batchnorm._NormBase):
            continue
        per_row = isinstance(in_training, torch.nn.modules.instancenorm._InstanceNorm)
        if per_row and in_training.running_mean is None:
            continue
        found = True
        kind = f"{name}: {in_training}"
        if policy is None:
            raise StructureError(
                "the network has batch statistics, and no policy says what predictions use",
                got=kind,
                expected=f"a policy: {', '.join(map(repr, POLICIES))}",
                write='from_torch(module, normalisation="transductive")',
            )
        without = in_training.running_mean is None or (
            policy == "carried" and (per_row or in_training.momentum is None)
        )
        if policy != "transductive" and without:
            raise StructureError(
                f"this layer has no running averages that the policy {policy!r} can use",
                got=kind,
                expected="batch normalisation with track_running_stats=True and a momentum",
                write='from_torch(module, normalisation="transductive")',
            )
        for layer in (in_training, in_prediction):
            layer.num_batches_tracked = None
            if policy == "transductive":
                layer.train().running_mean = layer.running_var = None
        if policy == "frozen":
            in_training.eval()
        prefix = f"{name}." if name else ""
        averages += [f"{prefix}running_mean", f"{prefix}running_var"]
    return averages if found else None


def _tensors(module: Any) -> Named:
    """Parameters and buffers; a tensor with several names has the first one only."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _to_jax(tensor: Any) -> Array:
    """A copy of the tensor in its dtype, or in what JAX has for it without `jax_enable_x64`."""
    mappings = optional_package("torchax.ops.mappings", "from_torch", "torch")
    return jnp.array(mappings.t2j(tensor.detach(), use_dlpack=False), copy=True)


def _nested(values: Named) -> PyTree:
    """`{"a.b": x}` as `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def _at(tree: PyTree, name: str) -> Array:
    for part in name.split("."):
        tree = tree[part]
    return tree


def _rows(inputs: Any, given: Mapping[str, Array], mask: Array | None) -> Array:
    """The inputs with padded rows blank; real numbers in the dtype of the parameters."""
    if jnp.issubdtype(jnp.result_type(inputs), jnp.floating):
        floats = (a.dtype for a in given.values() if jnp.issubdtype(a.dtype, jnp.floating))
        return model_inputs(inputs, next(floats, default_float()), mask)
    return blank_rows(jnp.asarray(inputs), mask)


def _call(
    network: Any, given: Named, rows: Array, key: PRNGKeyArray | None, mask: Array | None
) -> tuple[Array, Named]:
    """One forward pass.

    Returns:
        The outputs, and the arrays after the pass. The forward pass changes a buffer in place or by
        an assignment to its name, and `functional_call` hands on both in the dict that it is given.
    """
    torch = optional_package("torch", "from_torch", "torch")
    env, jax_device = environment(key, mask), torch.device("jax")
    wrapped = env.j2t_iso(given)
    of = {id(tensor): wrapped[name] for name, tensor in _tensors(network).items()}
    every_name = [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
    tensors = {name: of[id(tensor)] for name, tensor in every_name}
    # Modules mix dtypes and ranks as PyTorch does, also where JAX is told not to.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), env, jax_device:
        outputs = torch.func.functional_call(
            network, tensors, (env.j2t_iso(rows),), tie_weights=False
        )
    if not isinstance(outputs, torch.Tensor):
        raise StructureError(
            "the forward pass does not return one tensor",
            got=describe(outputs),
            expected="the outputs as a torch.Tensor, (rows, ...)",
        )
    return env.t2j_iso(outputs), env.t2j_iso({name: tensors[name] for name in given})
