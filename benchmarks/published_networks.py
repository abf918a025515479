"""Published PyTorch networks, meta-trained as they are: a ResNet-18 and a vision transformer.

torchvision's `resnet18` and timm's `vit_tiny_patch16_224` (4 blocks, patches of 7 × 7 pixels) go
through `il.adapters.from_torch` and are meta-trained from random weights on Omniglot 5-way 1-shot
images of 28 × 28 pixels: by MAML, by ANIL, which adapts their own last layer, and by first-order
MAML. A few outer steps show that it works and what it costs; they are far too few for a good
accuracy.

Needs Omniglot (`INNERLOOP_DATA`), the extra `torch`, and `pip install --no-deps torchvision timm`
in the versions that fit PyTorch:

    python benchmarks/published_networks.py [--steps 20] [--only vit]
"""

import argparse
import json
import os
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
TASKS, QUERIES, VALIDATION = 4, 3, 4


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

    sizes: dict[str, Any] = {
        "img_size": 28,
        "patch_size": 7,
        "in_chans": 1,
        "num_classes": 5,
        "depth": 4,
    }
    return timm.create_model("vit_tiny_patch16_224", **sizes)


channels_first = lambda inputs: inputs.permute(0, 3, 1, 2)
NETWORKS = {
    "resnet18": Network(
        "torchvision",
        resnet18,
        lambda module, inputs: module(channels_first(inputs).expand(-1, 3, -1, -1)),
        "transductive",
        lambda params: params["fc"],
        2e-4,
    ),
    "vit_tiny": Network(
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
    learn = il.GradientDescent(optax.sgd(0.1), steps=1)
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
    # Also used for validation, so that one program is compiled.
    value_and_grad = jax.jit(il.meta_value_and_grad(*recipe[:3], chunk=1))
    update = jax.jit(optimizer.update)

    def validation_loss(meta) -> float:
        keys = jax.random.split(jax.random.key(1), VALIDATION)
        batches = [value_and_grad(meta, test.sample(key, TASKS), key) for key in keys]
        return float(np.mean([float(loss) for (loss, _), _ in batches]))

    meta = recipe.init_meta(jax.random.key(0))
    moments, load, begin = optimizer.init(meta), os.getloadavg()[0], time.perf_counter()
    jax.block_until_ready(
        value_and_grad(meta, train.sample(jax.random.key(0), TASKS), jax.random.key(0))
    )
    first_step, before = time.perf_counter() - begin, validation_loss(meta)
    losses, seconds, processor = [], [], []
    for i in range(steps):
        key = jax.random.fold_in(jax.random.key(3), i)
        episodes, begin, cpu = train.sample(key, TASKS), time.perf_counter(), time.process_time()
        (loss, _), grads = value_and_grad(meta, episodes, key)
        updates, moments = update(grads, moments)
        meta = optax.apply_updates(meta, updates)
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
        "validation_loss_before": before,
        "validation_loss_after": validation_loss(meta),
        "first_step_seconds": first_step,
        "seconds_per_step": float(np.median(seconds)),
        "processor_seconds_per_step": float(np.median(processor)),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", help="networks with this in their name")
    arguments = parser.parse_args()
    names = [name for name in NETWORKS if arguments.only in name]
    records = [
        measure(name, recipe, arguments.steps)
        for name in names
        for recipe in ("anil", "first order", "maml")
    ]
    if RESULTS.exists():
        others = json.loads(RESULTS.read_text())["cases"]
        records = [record for record in others if record["network"] not in names] + records
    result = {
        "command": "python benchmarks/published_networks.py",
        "machine": machine() | {"torch": torch.__version__, "torchax": version("torchax")},
        "tasks": TASKS,
        "validation_tasks": TASKS * VALIDATION,
        "ways": 5,
        "shots": 1,
        "queries": 5 * QUERIES,
        "cases": records,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
