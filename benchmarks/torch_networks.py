"""A MAML step of a PyTorch network: by this library, by eager PyTorch and by torch.func.

One outer step's value and exact gradient on 5 tasks of 5-way 1-shot images of Omniglot's size, with
5 queries per class. The library compiles the network through torchax (`il.adapters.from_torch`),
with the tasks one after the other (`chunk=1`) or all at once.
Eager PyTorch takes the tasks one after the other and passes back through its own gradients
(`create_graph=True`), as higher and learn2learn do. torch.func computes `grad` of `vmap` of `grad`.
`torch.compile` of the torch.func step is tried in a process of its own and left out of the table if
it fails or is not ready in time. All sides start from the same weights and are timed in turn.

Needs the extra `torch`:

    python benchmarks/torch_networks.py [--rounds 12] [--cores 1]
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from overhead import interleaved, machine, ratio
from torch import nn

import innerloop as il

RESULTS = Path(__file__).parent / "results" / "torch-networks.json"
TASKS, WAYS, QUERIES, RATE = 5, 5, 5, 0.1
COMPILE_SECONDS = 60


def mlp() -> nn.Module:
    """MAML's fully connected network for Omniglot, without its batch normalisation."""
    sizes = [784, 256, 128, 64, 64]
    hidden = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, WAYS))


def conv4() -> nn.Module:
    """Four blocks of 64 filters, batch statistics and max pooling (Vinyals et al. 2016)."""
    block = lambda inputs: nn.Sequential(
        nn.Conv2d(inputs, 64, 3, padding=1),
        nn.BatchNorm2d(64, track_running_stats=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    return nn.Sequential(
        block(1), block(64), block(64), block(64), nn.Flatten(), nn.Linear(64, WAYS)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "conv4": conv4}


def tasks() -> tuple[np.ndarray, ...]:
    """Support and query images of noise, with their labels."""
    random = np.random.default_rng(0)
    images = lambda shots: random.uniform(size=(TASKS, WAYS * shots, 1, 28, 28)).astype("float32")
    labels = lambda shots: np.tile(np.arange(WAYS), (TASKS, shots))
    return images(1), labels(1), images(QUERIES), labels(QUERIES)


def by_library(module: nn.Module, steps: int, chunk: int | None = 1) -> Callable[[], tuple]:
    model = il.adapters.from_torch(module, normalisation="transductive")
    recipe = il.recipes.maml(model, il.models.cross_entropy, RATE, steps)
    arrays = [jnp.asarray(array) for array in tasks()]
    episodes = il.Episode(il.Examples(*arrays[:2]), il.Examples(*arrays[2:]))
    key = jax.random.key(0)
    meta = recipe.init_meta(key)
    parts = (recipe.problem, recipe.adaptation, recipe.gradient)
    step = jax.jit(il.meta_value_and_grad(*parts, chunk=chunk))

    def call() -> tuple:
        (value, _), grads = step(meta, episodes, key)
        return value, grads

    return call


def task_loss(module: nn.Module) -> Callable:
    return lambda params, images, labels: nn.functional.cross_entropy(
        torch.func.functional_call(module, params, (images,)), labels
    )


def eager(module: nn.Module, steps: int) -> Callable[[], tuple]:
    loss, data = task_loss(module), [torch.tensor(array) for array in tasks()]
    params = dict(module.named_parameters())

    def call() -> tuple:
        total = 0
        for support, labels, query, query_labels in zip(*data, strict=True):
            fast = params
            for _ in range(steps):
                value = loss(fast, support, labels)
                grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
                fast = {k: p - RATE * g for (k, p), g in zip(fast.items(), grads, strict=True)}
            total = total + loss(fast, query, query_labels) / TASKS
        grads = torch.autograd.grad(total, list(params.values()))
        return total.detach(), dict(zip(params, grads, strict=True))

    return call


def transformed(module: nn.Module, steps: int, compiled: bool = False) -> Callable[[], tuple]:
    loss, data = task_loss(module), [torch.tensor(array) for array in tasks()]
    params = {name: param.detach() for name, param in module.named_parameters()}

    def after_adaptation(params, support, labels, query, query_labels):
        fast = params
        for _ in range(steps):
            grads = torch.func.grad(loss)(fast, support, labels)
            fast = {name: fast[name] - RATE * grads[name] for name in fast}
        return loss(fast, query, query_labels)

    def mean(params, *data):
        return torch.func.vmap(after_adaptation, (None, 0, 0, 0, 0))(params, *data).mean()

    def value_and_grad(params, *data):
        grads, value = torch.func.grad_and_value(mean)(params, *data)
        return value, grads

    step = torch.compile(value_and_grad) if compiled else value_and_grad
    return lambda: step(params, *data)


at_once = lambda module, steps: by_library(module, steps, chunk=None)
SIDES = {
    "library": by_library,
    "library, tasks at once": at_once,
    "eager": eager,
    "torch.func": transformed,
}


def module_of(network: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[network]()


def try_compile(network: str, steps: int) -> dict:
    """What `torch.compile` gives in `COMPILE_SECONDS`, in a process of its own."""
    command = [sys.executable, __file__, "--compiled", network, str(steps)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"not ready after {COMPILE_SECONDS} seconds"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line]
        return {"error": (lines or ["no message"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def compiled_alone(network: str, steps: int) -> None:
    call = transformed(module_of(network), steps, compiled=True)
    begin = time.perf_counter()
    call()
    ready, seconds = time.perf_counter() - begin, []
    for _ in range(5):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    print(
        json.dumps({"first_call_seconds": ready, "milliseconds": 1e3 * float(np.median(seconds))})
    )


def largest_difference(ours: dict, theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference of two gradients, relative to the largest entry."""
    different, largest = 0.0, 0.0
    for name, grad in theirs.items():
        leaf = ours
        for part in name.split("."):
            leaf = leaf[part]
        different = max(different, float(np.abs(np.asarray(leaf) - grad.numpy()).max()))
        largest = max(largest, float(grad.abs().max()))
    return different / largest


def measure(network: str, steps: int, rounds: int) -> dict:
    calls, first, results = {}, {}, {}
    for name, side in SIDES.items():
        calls[name] = side(module_of(network), steps)
        begin = time.perf_counter()
        results[name] = jax.block_until_ready(calls[name]())
        first[name] = time.perf_counter() - begin
    load = os.getloadavg()[0]
    wall, processor = interleaved(calls, (), rounds)
    record: dict = {
        "network": network,
        "inner_steps": steps,
        "parameters": sum(p.numel() for p in module_of(network).parameters()),
        "rounds": len(wall["library"]),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "gradient_difference": largest_difference(results["library"][1], results["eager"][1]),
    }
    for name in SIDES:
        record[name] = {
            "first_call_seconds": first[name],
            "milliseconds": 1e3 * float(np.median(wall[name])),
            "processor_milliseconds": 1e3 * float(np.median(processor[name])),
        }
    for name in ("library, tasks at once", "eager", "torch.func"):
        record[f"{name} / library"] = {
            "wall": ratio(wall[name], wall["library"]),
            "processor": ratio(processor[name], processor["library"]),
        }
    record["torch.compile"] = try_compile(network, steps)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--cores", type=int, default=1, help="of the machine, for every side")
    parser.add_argument("--only", default="", help="networks whose name holds this: writes nothing")
    parser.add_argument("--compiled", nargs=2, metavar=("NETWORK", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # XLA counts the cores when it starts, with the first array.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.cores :])
    torch.set_num_threads(arguments.cores)
    if arguments.compiled:
        compiled_alone(arguments.compiled[0], int(arguments.compiled[1]))
        return
    records = []
    for network in NETWORKS:
        for steps in (1, 5):
            if arguments.only in f"{network} {steps}":
                records.append(measure(network, steps, arguments.rounds))
                print(json.dumps(records[-1], indent=1), flush=True)
    if arguments.only:
        return
    result = {
        "command": shlex.join(["python", "benchmarks/torch_networks.py", *sys.argv[1:]]),
        "machine": machine()
        | {"torch": torch.__version__, "torchax": version("torchax")}
        | {"cores_used": arguments.cores},
        "tasks": TASKS,
        "support": WAYS,
        "query": WAYS * QUERIES,
        "cases": records,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
