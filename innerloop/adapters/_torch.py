"""Models from PyTorch modules: torchax runs their forward pass on JAX arrays."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adapters._network import (
    MODES,
    NORMALISATION,
    _prepared,
    learnable,
    none_if_empty,
    policy,
    refuse_module,
    require_call,
    require_mode,
)
from innerloop.adapters._torch_environment import environment
from innerloop.arguments import checked
from innerloop.checks import describe, optional_package, signature_of
from innerloop.errors import StructureError
from innerloop.models import Model
from innerloop.problem import Stateful

Named = dict[str, Any]
"""Arrays or tensors by their names in the module, such as `"layer1.0.weight"`."""

Call = Callable[[Any, Any], Any]


@checked(normalisation=NORMALISATION)
def from_torch(
    module: Any,
    *,
    call: Call | None = None,
    normalisation: str | None = None,
    state: Sequence[str] = (),
) -> Model:
    """A model from a PyTorch module.

    ```python
    model = il.adapters.from_torch(torch.nn.Sequential(...))
    ```

    torchax runs the forward pass on JAX arrays, so JAX compiles the network, batches it over tasks
    and differentiates it any number of times. The module itself is copied and never changed.

    The parameters are dictionaries, nested by the names in the module:
    `params["layer1"]["0"]["weight"]` is `layer1.0.weight`. They start from the module's own weights
    for every key. Parameters with `requires_grad=False`, and buffers, are frozen.

    `learn` runs the module in training mode, where dropout draws with the key of the inner step.
    `apply` runs it in evaluation mode. Images have the layout of the module, which usually is
    `(rows, channels, height, width)`.

    Departs from PyTorch: JAX differentiates the forward pass, so the `backward` of a
    `torch.autograd.Function` is not used. JAX traces the forward pass, so a branch on the values of
    a tensor raises JAX's error. On CPU, a convolution without groups is one matrix product.

    Args:
        module: A `torch.nn.Module`. It takes one tensor and returns one, both with one row for each
            example.
        call: `(module, inputs) -> outputs`, if the call is not `module(inputs)`: `call=lambda
            module, inputs: module(inputs.permute(0, 3, 1, 2)).logits`.
        normalisation: The policy for layers such as `torch.nn.BatchNorm2d`, required if there are
            any. `"transductive"`: statistics of the rows at hand, in training and prediction.
            `"carried"`: statistics of the rows in training, which update running averages in the
            model state; running averages in prediction. `"frozen"`: running averages that never
            change. Padded rows do not count.
        state: Names of further buffers that the forward pass itself changes, such as
            `["cell.carry"]`. They become a part of the model state.

    Returns:
        The model.

    Raises:
        RunError: If PyTorch or torchax is not installed.
        StructureError: If `module` is not a PyTorch module, cannot be copied, or has complex
            parameters or parameters without a shape; if `call` is not as described; if the layers
            and the policy do not fit together; if a name in `state` is not that of a buffer; while
            tracing, if the forward pass changes another buffer, does not return one tensor, draws
            at random without a key, or reads a tensor after a change in place of a view of it.
    """
    optional_package("torchax", "from_torch", "torch")
    torch = optional_package("torch", "from_torch", "torch")
    if not isinstance(module, torch.nn.Module):
        refuse_module("from_torch", module, "a torch.nn.Module")
    _require_call(module, call)
    _require_shapes(torch, module)
    learning, predicting = _copies(module)
    layers = _statistical_layers(torch, learning)
    normalisation = policy("from_torch", normalisation, bool(layers))
    for name in layers:
        pair = learning.get_submodule(name), predicting.get_submodule(name)
        _set_policy(torch, normalisation, name, *pair)
    arrays = {name: _to_jax(tensor) for name, tensor in _tensors(learning).items()}
    named_parameters = learning.named_parameters()
    is_learned = lambda name, tensor: tensor.requires_grad and learnable(arrays[name])
    learned = {name for name, tensor in named_parameters if is_learned(name, tensor)}
    buffers = [name for name in arrays if name not in dict(learning.named_parameters())]
    if unknown := sorted(set(state) - {*buffers}):
        raise StructureError(
            "the model state names buffers that the module does not have",
            got=f"state={unknown}",
            expected=f"some of {buffers}",
        )
    averages = [f"{name}.{each}".lstrip(".") for name in layers for each in AVERAGES]
    moved = {*state, *(averages if normalisation == "carried" else ())}
    names = [name for name in arrays if name not in moved]
    fixed = [name for name in names if name not in learned]

    def run(network: Any, params: PyTree, inputs: Any, key: PRNGKeyArray | None, mask: Any):
        carried = isinstance(params, Stateful)
        tree, before = (params.params, params.state) if carried else (params, {})
        given = {name: _at(tree, name) for name in names} | before
        rows = _prepared(inputs, [given[name] for name in names if name in learned], mask)
        outputs, after = _run(network, call, given, rows, key, mask)
        if changed := [name for name in fixed if after[name] is not given[name]]:
            raise StructureError(
                "the forward pass changes buffers that are not a part of the model state",
                got=f"{changed} changed",
                expected="these names in `state`",
                write=f"from_torch(..., state={[*state, *changed]})",
            )
        return outputs, {name: after[name] for name in before}

    def learn(params, inputs, key, mask):
        outputs, after = run(learning, params, inputs, key, mask)
        return outputs, after if moved else None

    start = _nested({name: arrays[name] if name in learned else None for name in names})
    frozen = _nested({name: None if name in learned else arrays[name] for name in names})
    return Model(
        init=lambda key: start,
        apply=lambda params, inputs, key, mask: run(predicting, params, inputs, key, mask)[0],
        normalisation=normalisation,
        frozen=none_if_empty(frozen),
        state={name: arrays[name] for name in sorted(moved)} or None,
        learn=learn,
    )


def _require_call(module: Any, call: Call | None) -> None:
    function = module.forward if call is None else call
    if signature_of(function) is None:
        return
    arguments = ("inputs",) if call is None else ("module", "inputs")
    example = "call=lambda module, inputs: module(inputs, None)"
    require_call("from_torch", function, *arguments, offered=(), example=example)
    require_mode("from_torch", function, _call_with_mode)


def _call_with_mode(name: str) -> str:
    value = MODES[name].replace("training", "module.training")
    return f"call=lambda module, inputs: module(inputs, {name}={value})"


def _require_shapes(torch: Any, module: Any) -> None:
    """Raise `StructureError` if layers, such as `torch.nn.LazyLinear`, have no shapes yet."""
    lazy = torch.nn.parameter.is_lazy
    if names := [name for name, tensor in _tensors(module).items() if lazy(tensor)]:
        raise StructureError(
            "the module has parameters whose shapes its first call decides",
            got=", ".join(names),
            expected="a module that was called with a batch of inputs",
            write="module(inputs), before from_torch(module)",
        )


def _copies(module: Any) -> tuple[Any, Any]:
    """The module in training mode and in evaluation mode; both share the tensors of the module."""
    tensors = [*module.parameters(), *module.buffers()]
    try:
        learning, predicting = (
            copy.deepcopy(module, {id(tensor): tensor for tensor in tensors}) for _ in range(2)
        )
    except RuntimeError as error:
        hooks = [hook for each in module.modules() for hook in each._forward_pre_hooks.values()]
        has_hook = any(type(hook).__name__ == "WeightNorm" for hook in hooks)
        cure = "torch.nn.utils.parametrizations.weight_norm"
        raise StructureError(
            "the module cannot be copied, because it has a tensor that is computed from others",
            got=str(error).splitlines()[0],
            expected="tensors that are parameters or buffers, or that the forward pass computes",
            write=f"{cure}, in place of torch.nn.utils.weight_norm" if has_hook else None,
        ) from error
    return learning.train(), predicting.eval()


AVERAGES = ("running_mean", "running_var")


def _statistical_layers(torch: Any, module: Any) -> list[str]:
    """The names of the layers that may compute statistics of a batch or keep averages of them."""
    modules = torch.nn.modules
    per_row = lambda layer: isinstance(layer, modules.instancenorm._InstanceNorm)
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, modules.batchnorm._NormBase)
        and not (per_row(layer) and layer.running_mean is None)
    ]


def _set_policy(torch: Any, policy: str, name: str, in_training: Any, in_prediction: Any) -> None:
    """Sets the two modes of a layer to those of the policy."""
    per_row = isinstance(in_training, torch.nn.modules.instancenorm._InstanceNorm)
    has_averages = in_training.running_mean is not None
    has_updates = has_averages and in_training.momentum is not None and not per_row
    if not {"transductive": True, "frozen": has_averages, "carried": has_updates}[policy]:
        raise StructureError(
            f"a layer has no running averages that the policy {policy!r} can use",
            got=f"{name}: {in_training}",
            expected="batch normalisation with track_running_stats=True and a momentum",
            write="from_torch(..., normalisation='transductive')",
        )
    for layer in (in_training, in_prediction):
        # The number is needed for averages without a momentum alone, but SyncBatchNorm counts it.
        layer.num_batches_tracked = None
        if isinstance(layer, torch.nn.SyncBatchNorm):
            del layer.num_batches_tracked
            layer.num_batches_tracked = torch.zeros(())
        if policy == "transductive":
            layer.train().running_mean = layer.running_var = None
            layer.track_running_stats = False
    if policy == "frozen":
        in_training.eval()


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


def _run(
    network: Any,
    call: Call | None,
    given: Named,
    rows: PyTree,
    key: PRNGKeyArray | None,
    mask: Any,
) -> tuple[Array, Named]:
    """One forward pass.

    Returns:
        The outputs, and the arrays after the pass. The forward pass changes a buffer in place or by
        an assignment to its name, and `functional_call` hands on both in the dict that it is given.
    """
    torch = optional_package("torch", "from_torch", "torch")

    class Called(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, inputs):
            return self.network(inputs) if call is None else call(self.network, inputs)

    count = next((leaf.shape[0] for leaf in jax.tree.leaves(rows) if leaf.ndim), 1)
    env = environment(key, mask, count)
    wrapped = env.j2t_iso(given)
    first_name = {id(tensor): name for name, tensor in _tensors(network).items()}
    every_name = [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
    tensors = {f"network.{name}": wrapped[first_name[id(tensor)]] for name, tensor in every_name}
    promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    # Modules mix dtypes and ranks as PyTorch does, also where JAX is told not to.
    with promotion[0], promotion[1], env, torch.device("jax"):
        outputs = torch.func.functional_call(
            Called(), tensors, (env.j2t_iso(rows),), tie_weights=False
        )
    env.finish((outputs, tensors))
    if not isinstance(outputs, torch.Tensor):
        raise StructureError(
            "the forward pass does not return one tensor",
            got=describe(outputs),
            expected="the outputs as a torch.Tensor, (rows, ...), by an argument `call`",
        )
    return env.t2j_iso(outputs), env.t2j_iso({name: tensors[f"network.{name}"] for name in given})
