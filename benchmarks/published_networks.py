"""Published PyTorch networks, meta-trained as they are: a ResNet-18 and a vision transformer.

torchvision's `resnet18` and timm's `vit_tiny_patch16_224` (with patches of 7 × 7 pixels) go through
`il.adapters.from_torch` and are meta-trained from random weights on Omniglot 5-way 1-shot images of
28 × 28 pixels: by MAML, by ANIL, which adapts their own last layer, and by first-order MAML. A few
outer steps show that it works and what it costs; they are far too few for a good accuracy.

Needs Omniglot (`INNERLOOP_DATA`), the extra `torch`, and `pip install --no-deps torchvision timm`
in the versions that fit PyTorch:

    python benchmarks/published_networks.py [--steps 30] [--only vit]
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import torch
from overhead import machine

import innerloop as il
from innerloop.recipes.base import learned_network

RESULTS = Path(__file__).parent / "results" / "published-networks.json"
TASKS, QUERIES, VALIDATION = 4, 3, 16


def torchvision_without_operators() -> Any:
    """torchvision's networks, also beside a PyTorch for which its compiled operators are not built.

    The import of torchvision gives its operators an abstract implementation and fails if there are
    none; the networks here use none of them.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_without_operators.library = library
        import torchvision
    return torchvision


class Network(NamedTuple):
    """A published network.

    Args:
        package: The package that it comes from.
        make: The module.
        call: `(module, inputs) -> outputs` for images `(rows, height, width, 1)`.
        normalisation: The policy for its batch statistics, if there are any.
        head: Its last layer, in the tree of parameters.
        outer_rate: The rate of the outer Adam.
    """

    package: str
    make: Callable[[], torch.nn.Module]
    call: Callable[..., Any]
    normalisation: str | None
    head: Callable[..., Any]
    outer_rate: float


def resnet18() -> torch.nn.Module:
    return torchvision_without_operators().models.resnet18(num_classes=5)


def vit_tiny() -> torch.nn.Module:
    torchvision_without_operators()
    import timm

    sizes: dict[str, Any] = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes)


channels_first = lambda inputs: inputs.permute(0, 3, 1, 2)
NETWORKS = {
    "resnet18": Network(
        "torchvision",
        resnet18,
        lambda module, inputs: module(channels_first(inputs).expand(-1, 3, -1, -1)),
        "transductive",
        lambda params: params["fc"],
        1e-3,
    ),
    "vit_tiny_patch7_28": Network(
        "timm",
        vit_tiny,
        lambda module, inputs: module(channels_first(inputs)),
        None,
        lambda params: params["head"],
        1e-3,
    ),
}


def recipes(network: Network, model: il.models.Model) -> dict[str, il.recipes.Recipe]:
    loss = il.models.cross_entropy
    maml = il.recipes.maml(model, loss, rate=0.05, steps=1)
    learn = il.GradientDescent(optax.sgd(0.1), steps=3)
    return {
        "maml": maml,
        "first order": maml._replace(gradient=il.FirstOrder()),
        "anil": learned_network(model, learn, loss, where=network.head),
    }


def measure(name: str, recipe_name: str, steps: int) -> dict:
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = il.adapters.from_torch(
        network.make(), call=network.call, normalisation=network.normalisation
    )
    recipe = recipes(network, model)[recipe_name]
    splits = il.tasks.omniglot()
    tasks = lambda classes: il.tasks.ClassificationTasks(classes, 5, 1, QUERIES)
    train, test = tasks(splits.train), tasks(splits.validation)
    optimizer = optax.adam(network.outer_rate)
    value_and_grad = il.meta_value_and_grad(*recipe[:3], chunk=1)

    @jax.jit
    def step(meta, moments, key):
        sample_key, own_key = jax.random.split(key)
        (loss, _), grads = value_and_grad(meta, train.sample(sample_key, TASKS), own_key)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(meta, updates), moments, loss

    def judged(meta) -> dict[str, float]:
        episodes = test.sample(jax.random.key(1), VALIDATION)
        found = il.evaluate(recipe.learner, meta, episodes, jax.random.key(2), chunk=1)
        return {metric: float(values[-1]) for metric, values in found.mean.items()}

    meta = recipe.init_meta(jax.random.key(0))
    moments = optimizer.init(meta)
    load, before = os.getloadavg()[0], judged(meta)
    losses, seconds, processor = [], [], []
    for i in range(steps):
        begin, cpu = time.perf_counter(), time.process_time()
        meta, moments, loss = step(meta, moments, jax.random.fold_in(jax.random.key(3), i))
        losses.append(float(loss))
        seconds.append(time.perf_counter() - begin)
        processor.append(time.process_time() - cpu)
        print(f"{name} {recipe_name} {i}: {losses[-1]:.3f} in {seconds[-1]:.1f} s", flush=True)
    return {
        "network": name,
        "package": f"{network.package} {version(network.package)}",
        "recipe": recipe_name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(meta)),
        "adapted": sum(
            leaf.size
            for leaf in jax.tree.leaves(network.head(meta) if recipe_name == "anil" else meta)
        ),
        "normalisation": model.normalisation,
        "outer_steps": steps,
        "loss_of_first_and_last_five_steps": [
            float(np.mean(part)) for part in (losses[:5], losses[-5:])
        ],
        "validation_before": before,
        "validation_after": judged(meta),
        "first_step_seconds": seconds[0],
        "seconds_per_step": float(np.median(seconds[1:])),
        "processor_seconds_per_step": float(np.median(processor[1:])),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", default="", help="networks whose name holds this: writes nothing")
    arguments = parser.parse_args()
    records = []
    for name in NETWORKS:
        for recipe in ("anil", "first order", "maml"):
            if arguments.only in f"{name} {recipe}":
                records.append(measure(name, recipe, arguments.steps))
                print(json.dumps(records[-1], indent=1), flush=True)
    if arguments.only:
        return
    result = {
        "command": shlex.join(["python", "benchmarks/published_networks.py", *sys.argv[1:]]),
        "machine": machine() | {"torch": torch.__version__, "torchax": version("torchax")},
        "tasks": TASKS,
        "ways": 5,
        "shots": 1,
        "queries": 5 * QUERIES,
        "cases": records,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
