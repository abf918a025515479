"""LoRA of a small transformer against full adaptation and simple baselines, on real few-shot tasks.

A transformer reads an Omniglot drawing as a sequence of 16 patches. It is pretrained as a
classifier of 700 characters and their quarter turns. Tasks are 5-way 1-shot; meta-training has 400
other characters, validation 100 and test 423, all disjoint from each other and from the first.
Rates are chosen by the loss on validation characters, numbers of inner steps by the accuracy.

    INNERLOOP_DATA=FOLDER python benchmarks/lora.py [--quick]
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from overhead import machine

import innerloop as il
from innerloop.adapters import freeze, lora, matching
from innerloop.models import cross_entropy, dense, dense_init
from innerloop.trees import number_count, tree_bytes

RESULTS = Path(__file__).parent / "results"
PATCH, WIDTH, DEPTH, HEADS, WAYS, SHOTS, QUERIES = 7, 64, 2, 4, 5, 1, 2
RANK, ALPHA = 4, 4
TRAIN_STEPS, MOST_STEPS = 3, 5
RATES = (0.001, 0.003, 0.01, 0.03)
TESTS = 3
PER_CALL = 20


class Size(NamedTuple):
    """How long everything takes."""

    pretraining: int = 2000
    outer_steps: int = 400
    batch: int = 4
    tasks: int = 200
    """Validation tasks, and the test tasks of each of `TESTS` seeds."""


# --- the network ---------------------------------------------------------------------------------


def norm(params, x):
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred**2, -1, keepdims=True)
    return centred * lax.rsqrt(variance + 1e-5) * params["scale"][None] + params["shift"][None]


def patch_transformer() -> il.models.Model:
    """Drawings `(rows, 28, 28, 1)` to features `(rows, WIDTH)`: patches, blocks, a mean."""
    tokens = (28 // PATCH) ** 2
    scale_and_shift = lambda: {"scale": jnp.ones(WIDTH), "shift": jnp.zeros(WIDTH)}

    def block_init(key):
        keys = jax.random.split(key, 4)
        return {
            "attention_norm": scale_and_shift(),
            "query_key_value": dense_init(keys[0], WIDTH, 3 * WIDTH),
            "attention_out": dense_init(keys[1], WIDTH, WIDTH),
            "mlp_norm": scale_and_shift(),
            "mlp_in": dense_init(keys[2], WIDTH, 4 * WIDTH),
            "mlp_out": dense_init(keys[3], 4 * WIDTH, WIDTH),
        }

    def init(key):
        patches_key, positions_key, blocks_key = jax.random.split(key, 3)
        return {
            "patches": dense_init(patches_key, PATCH**2, WIDTH),
            "positions": 0.02 * jax.random.normal(positions_key, (tokens, WIDTH)),
            "blocks": jax.vmap(block_init)(jax.random.split(blocks_key, DEPTH)),
            "norm": scale_and_shift(),
        }

    def block(x, params):
        rows = x.shape[0] // tokens
        projected = dense(params["query_key_value"], norm(params["attention_norm"], x))
        split = projected.reshape(rows, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = (split[:, :, i] for i in range(3))
        scores = jnp.einsum("rqhd,rkhd->rhqk", query / (WIDTH // HEADS) ** 0.5, key)
        attended = jnp.einsum("rhqk,rkhd->rqhd", jax.nn.softmax(scores), value)
        x = x + dense(params["attention_out"], attended.reshape(rows * tokens, WIDTH))
        hidden = jax.nn.gelu(dense(params["mlp_in"], norm(params["mlp_norm"], x)))
        return x + dense(params["mlp_out"], hidden), None

    def apply(params, inputs, key, mask):
        rows, side = inputs.shape[0], 28 // PATCH
        patches = inputs.reshape(rows, side, PATCH, side, PATCH).transpose(0, 1, 3, 2, 4)
        x = dense(params["patches"], patches.reshape(rows * tokens, PATCH**2))
        x = x + jnp.tile(params["positions"], (rows, 1))
        x, _ = lax.scan(block, x, params["blocks"])
        return jnp.mean(norm(params["norm"], x).reshape(rows, tokens, WIDTH), axis=1)

    return il.models.Model(init, apply, "none")


# --- data and the base ---------------------------------------------------------------------------


class Data(NamedTuple):
    """Images of disjoint characters."""

    base: Any
    train: Any
    validation: Any
    test: Any


def characters() -> Data:
    splits = il.tasks.omniglot(classes=il.tasks.upright)
    images = np.asarray(splits.train.rows).reshape(1100, 20, 28, 28, 1)
    turned = il.tasks.with_quarter_turns(images[:700])
    return Data(turned, il.tasks.upright(images[700:]), splits.validation, splits.test)


def pretrained_body(features, data: Data, size: Size) -> tuple[Any, dict]:
    """A classifier of all characters of the base, without its head."""
    classes = len(data.base)
    recipe = il.recipes.pretrain_classifier(features, WIDTH, classes, WAYS, cross_entropy)
    rate = optax.cosine_decay_schedule(1e-3, size.pretraining)
    begin = time.perf_counter()
    fitted = il.fit(
        recipe.estimator(il.tasks.LabelledRows(data.base, rows=128), batch=1),
        recipe.init_meta,
        optimizer=optax.adam(rate),
        steps=size.pretraining,
        key=jax.random.key(0),
        report=shown("pretraining"),
    )
    batch = il.tasks.LabelledRows(data.base, rows=1000).sample(jax.random.key(1), 1)
    accuracy = float(
        il.evaluate(recipe._replace(tested=None).learner, fitted.last, batch, jax.random.key(2))
        .mean["accuracy"][-1]
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    return fitted.last["body"], {"classes": classes, "accuracy": accuracy, "seconds": seconds}


def shown(what: str, seconds: list | None = None):
    def report(progress) -> None:
        if seconds is not None:
            seconds.append(time.perf_counter())
        if progress.step % 100 == 0:
            loss = float(np.mean(progress.metrics["loss"]))
            print(f"  {what} {progress.step}: {loss:.3f}", flush=True)

    return report


# --- variants ------------------------------------------------------------------------------------


def networks(features, body) -> dict[str, il.models.Model]:
    """What is adapted. All start from the same network, whose new head is zero."""
    model = il.models.linear_head(features, WIDTH, WAYS)
    head = {"weights": jnp.zeros((WIDTH, WAYS)), "bias": jnp.zeros(WAYS)}
    params, head_only = {"body": body, "head": head}, matching("head")
    factored = matching("body.blocks*weights")
    given = {"rank": RANK, "where": factored, "alpha": ALPHA, "learned": head_only}
    return {
        "head": freeze(model, params, ~head_only),
        "LoRA": lora(model, params, **given),
        "LoRA, base in bfloat16": lora(model, params, **given, dtype=jnp.bfloat16),
        "all": model._replace(init=lambda key: params),
    }


def with_rate(model) -> il.Learner:
    """MAML whose inner rate is a part of meta, so that one program serves all rates."""
    problem = il.recipes.maml(model, cross_entropy).problem
    of_net = lambda loss: lambda params, meta, *given: loss(params, meta["net"], *given)
    moved = il.Problem(
        lambda meta, *given: problem.init(meta["net"], *given),
        of_net(problem.inner_loss),
        of_net(problem.outer_loss),
        frozen=None if problem.frozen is None else {"net": problem.frozen, "rate": None},
    )
    return il.Learner(moved, il.GradientDescent(lambda meta: optax.sgd(meta["rate"]), MOST_STEPS))


def judged(learner, meta, tasks, count: int, seed: int) -> il.training.Evaluation:
    episodes = il.tasks.evaluation_episodes(tasks, count, seed=seed)
    return il.evaluate(learner, meta, episodes, jax.random.key(seed), chunk=20)


def tested(learner, meta, tasks, size: Size, step: int) -> dict:
    """Mean and 95% interval on the test tasks after this inner step."""
    found = [judged(learner, meta, tasks.test, size.tasks, seed) for seed in range(2, 2 + TESTS)]
    squares = [each.interval["accuracy"][step] ** 2 for each in found]
    return {
        "steps": step,
        "accuracy": float(np.mean([each.mean["accuracy"][step] for each in found])),
        "interval": float(np.sum(squares) ** 0.5 / TESTS),
    }


class Tasks(NamedTuple):
    train: Any
    validation: Any
    test: Any


def memory_of(model, rate: float, meta, tasks: Tasks, size: Size) -> dict:
    """Of one outer step of MAML: what the compiler says, and what `plan` counts."""
    recipe = il.recipes.maml(model, cross_entropy, rate, TRAIN_STEPS)
    episodes = tasks.train.sample(jax.random.key(0), size.batch)
    held = recipe.problem.frozen, recipe.problem.state
    step = lambda held, *given: il.meta_value_and_grad(
        recipe.problem.holding(*held), recipe.adaptation
    )(*given)
    sizes = jax.jit(step).lower(held, meta, episodes, jax.random.key(1)).compile().memory_analysis()
    planned = il.plan(
        *(recipe.problem, recipe.adaptation, meta, episodes, "8GiB"),
        gradients=[il.Unroll()],
        chunk=size.batch,
    )
    return {
        "temporary_bytes": sizes.temp_size_in_bytes,
        "argument_bytes": sizes.argument_size_in_bytes,
        "result_bytes": sizes.output_size_in_bytes,
        "planned_bytes": planned.memory,
        "frozen_bytes": tree_bytes(model.frozen),
        "learned_bytes": tree_bytes(meta),
        "adam_bytes": tree_bytes(optax.adam(1e-3).init(meta)),
    }


def measured(name: str, model, tasks: Tasks, size: Size) -> list[dict]:
    """One choice of what is adapted: from the pretrained network, and after meta-training."""
    meta, learner = model.init(jax.random.key(3)), with_rate(model)
    whole = number_count(meta) + number_count(model.frozen)
    at = lambda meta, rate: {"net": meta, "rate": jnp.float32(rate)}
    validated = lambda meta, rate: judged(
        learner, at(meta, rate), tasks.validation, size.tasks, 1
    ).mean  # fmt: skip
    found = {rate: validated(meta, rate) for rate in RATES}
    # By the loss: from a head of zeros, accuracy after one step hardly depends on the rate.
    rate = min(RATES, key=lambda rate: found[rate]["loss"][TRAIN_STEPS])
    common = {
        "adapted": name,
        "parameters": number_count(meta),
        "share": number_count(meta) / whole,
        "rate": rate,
        "memory": memory_of(model, rate, meta, tasks, size),
    }
    test = lambda meta, curve: tested(
        learner, at(meta, rate), tasks, size, int(np.argmax(curve))
    )  # fmt: skip
    losses = {str(rate): each["loss"].tolist() for rate, each in found.items()}
    untrained = {"meta_trained": False, "validation_losses": losses}
    untrained |= test(meta, found[rate]["accuracy"])
    rows = [common | untrained]
    if "bfloat16" in name:
        return rows
    recipe = il.recipes.maml(model, cross_entropy, rate, TRAIN_STEPS)
    seconds = []
    fitted = il.fit(
        recipe.estimator(tasks.train, batch=size.batch),
        meta,
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(optax.cosine_decay_schedule(1e-3, size.outer_steps)),
        ),
        steps=size.outer_steps,
        key=jax.random.key(4),
        per_call=PER_CALL,
        report=shown(f"MAML of {name}", seconds),
    )
    trained = {
        "meta_trained": True,
        "seconds_per_outer_step": float(np.median(np.diff(seconds))) / PER_CALL,
    }
    accuracies = validated(fitted.last, rate)["accuracy"]
    return [*rows, common | trained | test(fitted.last, accuracies)]


def nearest_mean(features, body, tasks: Tasks, size: Size) -> dict:
    """The simple baseline: the nearest class mean of frozen features; nothing is learned."""
    learner = il.recipes.protonet(features, cross_entropy, WAYS).learner
    result = tested(learner, body, tasks, size, 0)
    return {
        "adapted": "nothing (nearest class mean)",
        "meta_trained": False,
        "parameters": 0,
        "share": 0.0,
        "accuracy": result["accuracy"],
        "interval": result["interval"],
    }


# --- report --------------------------------------------------------------------------------------


def table(rows: list[dict]) -> str:
    heads = ["adapted", "meta-trained", "learned", "rate, steps", "accuracy, %", "MiB", "s / step"]
    lines = [heads, ["---", "---", "---:", "---:", "---:", "---:", "---:"]]
    for row in rows:
        memory = row.get("memory")
        lines.append([
            row["adapted"],
            "yes" if row["meta_trained"] else "no",
            f"{row['parameters']:,} ({row['share']:.1%})",
            f"{row['rate']:g}, {row['steps']}" if "rate" in row else "",
            f"{100 * row['accuracy']:.1f} ± {100 * row['interval']:.1f}",
            f"{memory['planned_bytes'] / 2**20:.1f}" if memory else "",
            f"{row['seconds_per_outer_step']:.2f}" if "seconds_per_outer_step" in row else "",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute; writes nothing")
    quick = parser.parse_args().quick
    size = Size(60, 40, 2, 20) if quick else Size()
    data, features = characters(), patch_transformer()
    given = (WAYS, SHOTS, QUERIES)
    of = lambda images: il.tasks.ClassificationTasks(images, *given)
    tasks = Tasks(of(data.train), of(data.validation), of(data.test))
    body, base = pretrained_body(features, data, size)
    print(base, flush=True)
    rows = [nearest_mean(features, body, tasks, size)]
    print(table(rows), flush=True)
    for name, model in networks(features, body).items():
        rows += measured(name, model, tasks, size)
        print(table(rows), flush=True)
    if quick:
        return
    result = {
        "command": shlex.join(["python", "benchmarks/lora.py", *sys.argv[1:]]),
        "machine": machine(),
        "config": {
            **size._asdict(),
            "ways": WAYS,
            "shots": SHOTS,
            "queries": QUERIES,
            "train_steps": TRAIN_STEPS,
            "width": WIDTH,
            "depth": DEPTH,
            "heads": HEADS,
            "patch": PATCH,
            "rank": RANK,
            "alpha": ALPHA,
            "rates": RATES,
        },
        "base": base,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lora.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "lora.md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
