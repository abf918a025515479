"""One run on one device, on eight, in two and in four processes: losses, time, bytes on the wire.

    python benchmarks/sharding.py

trains sinusoid for 100 outer steps in float64 by the command line, each way in processes of its own
on loopback, holds the losses against those of one device, and counts what a step sends: the bytes
that the loopback interface carried, and those of the program's collectives. `results/sharding.json`
holds that and a roofline for many accelerators, on paper, from the counted operations.
"""

import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax

import innerloop as il
from innerloop.devices.sharding import placement
from innerloop.lab.run_folder import environment
from innerloop.programs.cost import flops
from innerloop.training.outer_loop import Program, init_state, outer_steps

RESULTS = Path(__file__).parent / "results" / "sharding.json"
STEPS, BATCH = 100, 24
COMMAND = [
    *(sys.executable, "-m", "innerloop", "train", "sinusoid", "--steps", str(STEPS)),
    *("--batch", str(BATCH), "--per-call", "50", "--validate-every", "100"),
    *("--validation-tasks", "16", "--test-tasks", "16", "--save-every", "100"),
]
EIGHT = "--xla_force_host_platform_device_count=8"


# Datasheet figures of an H100 (SXM), and what is assumed of it. Nothing of this is measured.
FLOPS = 0.4 * 67e12  # float32 without tensor cores, at an efficiency that is assumed
BYTES_PER_SECOND = {8: 450e9, 256: 50e9}  # NVLink, one direction; InfiniBand of 400 Gb/s
LATENCY = 10e-6  # of one stage of a collective, assumed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def loopback_bytes() -> int:
    """What the loopback interface has sent since the machine started."""
    line = next(
        line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip()[:3] == "lo:"
    )
    return int(line.split(":")[1].split()[8])


def train(folder: Path, name: str, processes: int, xla_flags: str = "", steps: int = STEPS):
    """Losses of a run, and what the loopback carried meanwhile."""
    run, address = folder / f"{name}-{steps}", f"127.0.0.1:{free_port()}"
    command = [*COMMAND, "--steps", str(steps), "--run", str(run), "--devices", "all"]
    if processes > 1:
        command += ["--coordinator", address, "--processes", str(processes), "--process"]
    before = loopback_bytes()
    started = [
        subprocess.Popen(
            [*command, str(i)] if processes > 1 else command,
            env=os.environ | {"JAX_ENABLE_X64": "1", "XLA_FLAGS": xla_flags},
            stdout=subprocess.DEVNULL,
        )
        for i in range(processes)
    ]
    assert all(process.wait() == 0 for process in started)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = np.concatenate([record["losses"] for record in log])
    assert len(losses) == steps
    return losses, loopback_bytes() - before, log[-1]["system"]["step_seconds"]


def row(folder: Path, name: str, devices: int, processes: int, flags: str, one: np.ndarray) -> dict:
    losses, sent, step_seconds = train(folder, name, processes, flags)
    record = {
        "devices": devices,
        "processes": processes,
        "largest_relative_difference": float(np.max(np.abs(losses / one - 1))),
        "step_ms": 1e3 * step_seconds,
    }
    if processes > 1:
        # What is sent at the beginning and the end of any run is taken off.
        longer = 11 * STEPS
        more = train(folder, name, processes, flags, longer)[1] - sent
        record["loopback_bytes_per_step"] = round(more / (longer - STEPS))
    return record


def the_program(devices: int | str | None):
    """The compiled outer step of sinusoid, and its meta-parameters."""
    network = il.models.mlp([1, 40, 40, 1])
    recipe = il.recipes.maml(network, il.models.mean_squared_error, 0.01, 3)
    place, optimizer = placement(devices), optax.adam(1e-3)
    estimator = recipe.estimator(il.tasks.SinusoidTasks(10, 10), BATCH).on(place)
    program = Program(place.place(estimator), optimizer, 0.999, place)
    meta = network.init(jax.random.key(0))
    state = place.place_state(init_state(meta, optimizer))
    key, count = place.place(jax.random.key(0)), place.place(np.int32(50))
    lowered = outer_steps.lower(program, state, None, key, count, 50)
    return lowered.compile().compiled.as_text(), meta


def collectives() -> dict:
    """Bytes of the operands of each collective in the program for eight devices, by kind."""
    text, meta = the_program("all")
    sizes = {"f64": 8, "f32": 4, "s64": 8, "s32": 4, "u32": 4, "pred": 1}
    found: dict[str, int] = {}
    pattern = r"= \(?(.*?)\)? (all-reduce|reduce-scatter|all-gather|all-to-all)(?:-start)?\("
    for shapes, kind in re.findall(pattern, text):
        bytes_ = sum(
            sizes[dtype] * math.prod(int(n) for n in dims.split(",") if n)
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        )
        found[kind] = found.get(kind, 0) + bytes_
    return {
        "bytes_by_kind": found,
        "meta_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(meta)),
    }


def roofline() -> list[dict]:
    """A step of many accelerators, on paper: operations and bytes counted, rates of datasheets."""
    omniglot = il.tasks.ClassificationTasks(np.zeros((5, 6, 28, 28, 1), np.float32), 5, 1, 5)
    text = il.Examples(np.zeros((1, 1, 256), np.int32), np.zeros((1, 1, 256), np.int32))
    rows = []
    cases = {
        "Omniglot, conv-64, 1 inner step, 4 tasks a device": (
            il.recipes.maml(il.models.conv4(5, 64), il.models.cross_entropy, 0.4, 1),
            omniglot.sample(jax.random.key(0), 4),
        ),
        "transformer 12 × 256, 4 inner steps, 1 task a device": (
            il.recipes.maml(
                il.models.transformer(256, 256, 12, 4, 256), il.models.cross_entropy, 0.1, 4
            ),
            il.Episode(text, text),
        ),
    }
    for name, (recipe, episodes) in cases.items():
        meta = jax.eval_shape(recipe.init_meta, jax.random.key(0))
        count = flops(il.meta_value_and_grad(*recipe[:3]), meta, episodes, jax.random.key(0))
        bytes_ = sum(4 * leaf.size for leaf in jax.tree.leaves(meta))
        compute = count / FLOPS
        for devices, rate in BYTES_PER_SECOND.items():
            sent = 2 * (devices - 1) / devices * bytes_
            stages = 2 * math.ceil(math.log2(devices))
            communication = sent / rate + stages * LATENCY
            rows.append(
                {
                    "case": name,
                    "devices": devices,
                    "gflop_per_device": count / 1e9,
                    "sent_mbytes_per_device": sent / 1e6,
                    "compute_ms": 1e3 * compute,
                    "communication_ms": 1e3 * communication,
                    "efficiency_without_overlap": compute / (compute + communication),
                }
            )
    return rows


def main() -> None:
    if sys.argv[1:] == ["--collectives"]:
        print(json.dumps(collectives()))
        return
    counted = subprocess.run(
        [sys.executable, __file__, "--collectives"],
        env=os.environ | {"JAX_ENABLE_X64": "1", "XLA_FLAGS": EIGHT},
        capture_output=True,
        check=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, _, step_seconds = train(folder, "one", 1)
        rows = [
            {"devices": 1, "processes": 1, "step_ms": 1e3 * step_seconds},
            row(folder, "eight", 8, 1, EIGHT, one),
            row(folder, "two", 2, 2, "", one),
            row(folder, "four", 4, 4, "", one),
        ]
    record = {
        "steps": STEPS,
        "batch": BATCH,
        "runs": rows,
        "collectives_of_a_step": json.loads(counted.stdout),
        "roofline_on_paper": roofline(),
        "command": " ".join(["innerloop", *COMMAND[3:], "--devices", "all"]),
        "environment": environment(),
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({name: record[name] for name in record if name != "environment"}, indent=2))


if __name__ == "__main__":
    main()
