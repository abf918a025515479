"""Golden bits: hashes of the losses and the meta-parameters of short runs.

    python benchmarks/golden.py                         # holds them against results/golden.json
    python benchmarks/golden.py --write                 # writes results/golden.json
    python benchmarks/golden.py --accept RUN "reason"   # replaces one hash, and keeps the reason

A change that is meant to change no number is held to these hashes. They hold for one kind of
processor and one version of JAX, which stand in the file, so they are no test of the suite.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

DEVICES = "--xla_force_host_platform_device_count=8"
if os.environ.get("GOLDEN_DEVICES"):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import innerloop as il  # noqa: E402

RESULT = Path(__file__).parent / "results" / "golden.json"
KEY = jax.random.key(11)
TASKS = il.tasks.SinusoidTasks(shots=5, queries=5)
MODEL = il.models.mlp([1, 16, 16, 1])
LOSS = il.models.mean_squared_error
MAML = il.recipes.maml(MODEL, LOSS, rate=0.01, steps=3)


def follow(estimator, init_meta=MAML.init_meta, **changed):
    """Losses and meta-parameters of a short run."""
    losses = []
    options = {"optimizer": optax.adam(1e-2), "steps": 20, "key": KEY, "per_call": 7}
    options |= {"report": lambda progress: losses.extend(progress.metrics["loss"].tolist())}
    outcome = il.fit(estimator, init_meta, **(options | changed))
    return np.asarray(losses), outcome.meta, outcome.last


def fit(recipe, tasks=TASKS, batch=6, chunk=None, **changed):
    return follow(recipe.estimator(tasks, batch, chunk), recipe.init_meta, **changed)


def by(gradient, recipe=MAML, **changed):
    return lambda: fit(recipe._replace(gradient=gradient), **changed)


def of_windows(kind, window, horizon, tasks=TASKS, batch=6, **settings):
    return kind(MAML.problem, MAML.adaptation, tasks, window, horizon, batch, **settings)


def by_windows(*given, devices=None, **settings):
    return lambda: follow(of_windows(*given, **settings), devices=devices)


def validated():
    episodes = il.tasks.evaluation_episodes(TASKS, 8, seed=1)
    return fit(MAML, averaging=0.9, validation=il.Validation(episodes, every=6), batch=5, chunk=2)


WIDE = il.tasks.SinusoidTasks(shots=8, queries=3)


def mixture():
    whole = lambda tasks, batch: MAML.estimator(tasks, batch)
    return follow(il.estimators.WeightedSum((whole(TASKS, 4), 2.0), (whole(WIDE, 2), 1.0)))


def windows_of_kinds():
    windows = lambda *given: of_windows(il.estimators.TruncatedUnroll, 1, 3, *given)
    return follow(il.estimators.WeightedSum((windows(TASKS, 4), 2.0), (windows(WIDE, 2), 1.0)))


def draw(rng):
    x = rng.uniform(-5, 5, (10, 1)).astype(np.float32)
    y = np.sin(x + rng.uniform(0, 3)).astype(np.float32)
    return il.Episode(il.Examples(x[:5], y[:5]), il.Examples(x[5:], y[5:]))


def faulty(policy):
    """The loss of a task whose first input is large is NaN."""

    def loss(params, meta, batch, key):
        value, aux = MAML.problem.inner_loss(params, meta, batch, key)
        return value * jnp.where(batch.inputs[0, 0] > 4.5, jnp.nan, 1.0), aux

    problem = il.Problem(MAML.problem.init, loss, loss)
    return lambda: fit(MAML._replace(problem=problem), non_finite=policy)


def resumed():
    with tempfile.TemporaryDirectory() as folder:
        saved = il.training.Checkpoints(folder, every=4)
        first, *_ = fit(MAML, steps=8, checkpoints=saved)
        losses, *metas = fit(MAML, checkpoints=saved, resume=True)
    return np.concatenate([first, losses]), *metas


PES = (il.estimators.PersistentES, 2, 6)

RUNS = {
    "maml": by(il.Unroll()),
    "validated, averaged, in chunks": validated,
    "maml++ with phases and schedule": lambda: fit(
        il.recipes.maml_plus_plus(
            MODEL, LOSS, rate=0.01, steps=3, annealed_over=12, first_order_until=9
        )
    ),
    "reptile on mini-batches": lambda: fit(il.recipes.reptile(MODEL, LOSS, rows=3)),
    "imaml": lambda: fit(il.recipes.imaml(MODEL, LOSS, rate=0.01, steps=3)),
    "persistent evolution strategies": by_windows(*PES, pairs=2, sigma=0.05),
    "truncated windows that overlap": by_windows(il.estimators.TruncatedUnroll, 3, 7, overlap=1),
    "evolution in windows": by_windows(il.estimators.TruncatedES, 2, 6, pairs=2, sigma=0.05),
    "a mixture of tasks": mixture,
    "a mixture of windows": windows_of_kinds,
    "streamed": lambda: fit(MAML, il.tasks.StreamedTasks(draw, ahead=3)),
    "skipped": faulty(il.training.Skip(in_a_row=100)),
    "clipped": faulty(il.training.Clip(in_a_row=100)),
    "resumed": resumed,
    "first order": by(il.FirstOrder()),
    "first order in the first step": by(il.FirstOrder(lambda t, params: t < 1)),
    "checkpointed, mixed mode": by(il.Unroll(il.MixedMode(), il.Segments(1))),
    "binomial": by(il.Unroll(loop=il.Binomial(2))),
    "truncated": by(il.Truncated(2)),
    "truncated without a bridge": by(
        il.Truncated(2, identity=False), il.recipes.meta_sgd(MODEL, LOSS, rate=0.01, steps=3)
    ),
    "bounded": by(il.Bounded(0.1)),
    "clipped by task": by(il.Clipped(il.Unroll(), 0.1)),
    "forward mode": by(il.ForwardMode(il.gradients.RandomDirections(4))),
    "evolution": by(il.EvolutionStrategies(4, 0.1, chunk=2)),
}

ON_DEVICES = {
    "eight devices": by(il.Unroll(), batch=11, devices="all"),
    "windows on eight devices": by_windows(*PES, batch=8, pairs=2, sigma=0.05, devices="all"),
}


def digest(parts) -> str:
    """Of the bytes of all leaves."""
    state = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        state.update(np.ascontiguousarray(leaf).tobytes())
    return state.hexdigest()[:16]


def measured() -> dict[str, str]:
    if os.environ.get("GOLDEN_DEVICES"):
        return {name: digest(run()) for name, run in ON_DEVICES.items()}
    hashes = {name: digest(run()) for name, run in RUNS.items()}
    several = subprocess.run(
        [sys.executable, __file__, "--print"],
        env=os.environ | {"GOLDEN_DEVICES": "8"},
        check=True,
        capture_output=True,
        text=True,
    )
    return hashes | json.loads(several.stdout.splitlines()[-1])


def processor() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--accept", nargs=2, metavar=("RUN", "REASON"), action="append", default=[])
    parser.add_argument("--print", action="store_true")
    arguments = parser.parse_args()
    hashes = measured()
    if arguments.print:
        print(json.dumps(hashes))
        return 0
    place = {"processor": processor(), "jax": jax.__version__}
    if arguments.write:
        RESULT.write_text(json.dumps({"place": place, "hashes": hashes}, indent=2) + "\n")
        return 0
    kept = json.loads(RESULT.read_text())
    if kept["place"] != place:
        print(f"The hashes were made on {kept['place']}, and this is {place}.")
    expected = kept["hashes"]
    for name, reason in arguments.accept:
        kept.setdefault("changes", []).append(
            {"run": name, "was": expected[name], "is": hashes[name], "because": reason}
        )
        expected[name] = hashes[name]
    if arguments.accept:
        RESULT.write_text(json.dumps(kept, indent=2) + "\n")
    different = [name for name in expected if hashes.get(name) != expected[name]]
    for name in expected:
        print("differs" if name in different else "same   ", name)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
