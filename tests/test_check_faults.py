"""Faults that `check` finds, each with the cures that its message offers: a cure leaves no finding.

Each check is called by itself, which is faster than all of them. `test_check.py`,
`test_check_cures.py` and the page on pitfalls have faults that the whole of `check` goes through.
"""

import re
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checking import KEY, LEARN, META, episodes, fit, inner, outer, start
from jax.experimental import sparse

import innerloop as il
from innerloop.adaptation import Info, Origin
from innerloop.diagnostics import Severity, check
from innerloop.diagnostics._check import RUN, TRACED
from innerloop.diagnostics.checks import (
    batches,
    derivatives,
    inner_loop,
    masks,
    randomness,
    repeats,
    statistics,
    tracing,
    values,
)
from innerloop.diagnostics.checks import (
    episodes as batch_of_episodes,
)
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import NotChecked
from innerloop.extend import Adaptation
from innerloop.normal_form import loss_function
from innerloop.problem import Episode, Examples
from innerloop.trees import elements

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def found(
    look,
    init=start,
    inner=inner,
    outer=outer,
    learn: Adaptation = LEARN,
    meta=META,
    data=None,
    by=None,
):
    problem, data = il.Problem(init, inner, outer), data or episodes()
    subject = Subject(problem, learn, meta, data, KEY, by or il.Unroll())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return list(look(subject))


class Fault(NamedTuple):
    """A fault, what is said of it, and what is right."""

    look: Callable
    faulty: dict[str, Any]
    severity: Severity
    message: str
    right: tuple[dict[str, Any], ...]


# --- how the losses read their data --------------------------------------------------------------


def column_of_predictions(params, meta, batch, key):
    return jnp.mean((batch.inputs @ params[:, None] - batch.targets) ** 2)


def first_column(params, meta, batch, key):
    return jnp.mean(((batch.inputs @ params[:, None])[:, 0] - batch.targets) ** 2)


def column_of_targets(params, meta, batch, key):
    return jnp.mean((batch.inputs @ params - batch.targets[:, None]) ** 2)


def two_columns(params, meta, batch, key):
    return jnp.mean((batch.inputs @ params[:, None] - batch.targets[:, None]) ** 2)


@jax.jit
def chosen_from_columns(params, meta, batch, key):
    predictions = jax.vmap(lambda row: row @ params[:, None])(batch.inputs)
    return jnp.sum(jnp.where(batch.targets > 0, predictions, 0.0))


def lazy_kernel(params, meta, batch, key):
    """All pairs of rows, on purpose and by the same broadcasting."""
    features = batch.inputs @ params
    distances = (features[:, None] - features) ** 2
    return batch.targets @ jnp.exp(-distances) @ batch.targets + jnp.sum(params**2)


def one_feature(params, meta, batch, key):
    """A feature of each row times as many weights as there are rows."""
    weights = jnp.concatenate([params, params[:2]])
    hidden = jnp.tanh(batch.inputs[:, :1] * weights)
    return jnp.mean((jnp.sum(hidden, 1) - batch.targets) ** 2)


def no_data(params, meta, batch, key):
    return jnp.sum((params - 2 * meta["w"]) ** 2)


def three_ways(rows):
    """Tasks of two classes for a model of three outputs."""
    labels = jnp.tile(jnp.arange(rows) % 2, (3, 1))
    classes = jnp.tile(jnp.array([True, True, False]), (3, rows, 1))
    half = lambda one: Examples(one.inputs, labels, classes=classes)
    one = episodes(rows=rows)
    return Episode(half(one.support), half(one.query))


def logits(params, batch):
    return batch.inputs * params


def all_outputs(params, meta, batch, key):
    scores = jax.nn.log_softmax(logits(params, batch))
    return -jnp.mean(jnp.take_along_axis(scores, batch.targets[:, None], 1))


def of_the_model(params, meta, batch, key):
    return il.models.cross_entropy(logits(params, batch), batch)[0]


def of_its_classes(params, meta, batch, key):
    scores = jax.nn.log_softmax(jnp.where(batch.classes, logits(params, batch), -jnp.inf))
    return -jnp.mean(jnp.take_along_axis(scores, batch.targets[:, None], 1))


def masked(rows=5, valid=3):
    one, mask = episodes(rows=rows), jnp.tile(jnp.arange(rows) < valid, (3, 1))
    half = lambda s: Examples(s.inputs, s.targets, mask)
    return Episode(half(one.support), half(one.query))


def every_row(params, meta, batch, key):
    return fit(params, batch) + 0 * jnp.sum(batch.mask)


def rows_of_the_mask(params, meta, batch, key):
    return il.models.mean_squared_error(batch.inputs @ params, batch)[0]


# --- random numbers, statistics ------------------------------------------------------------------


def dropout(params, batch, key):
    keep = jax.random.bernoulli(key, 0.5, batch.inputs.shape)
    return jnp.mean((jnp.where(keep, batch.inputs, 0) @ params - batch.targets) ** 2)


def same_dropout(params, meta, batch, key):
    return dropout(params, batch, jax.random.key(0))


def same_dropout_of_raw_keys(params, meta, batch, key):
    return dropout(params, batch, jax.random.PRNGKey(0))


def own_dropout(params, meta, batch, key):
    return dropout(params, batch, key)


def projected_within(params, meta, batch, key):
    projection = jax.random.normal(jax.random.key(0), (3, 3))
    return jnp.mean((batch.inputs @ projection @ params - batch.targets) ** 2)


PROJECTION = jax.random.normal(jax.random.key(0), (3, 3))


def projected(params, meta, batch, key):
    return jnp.mean((batch.inputs @ PROJECTION @ params - batch.targets) ** 2)


def seeded(params, meta, batch, key):
    return dropout(params, batch, jax.random.key(meta["seed"].astype(int)))


STATISTICS = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
WITH_STATISTICS = {**META, **STATISTICS}
SEEDED = {**META, "seed": jnp.float32(3)}


def normalised(params, batch, statistics):
    scaled = jax.lax.rsqrt(statistics["var"] + 1e-5)
    return jnp.mean(((batch.inputs - statistics["mean"]) * scaled @ params - batch.targets) ** 2)


def of_batch(batch):
    return {"mean": jnp.mean(batch.inputs, 0), "var": jnp.var(batch.inputs, 0)}


def training_mode(params, meta, batch, key):
    """As BatchNorm of other libraries while it trains: new running statistics, in aux."""
    now = of_batch(batch)
    running = {name: 0.9 * meta[name] + 0.1 * now[name] for name in now}
    return normalised(params, batch, now), running


def evaluation_mode(params, meta, batch, key):
    return normalised(params, batch, meta)


def with_batch_statistics(params, meta, batch, key):
    return normalised(params, batch, of_batch(batch))


def with_fixed_statistics(params, meta, batch, key):
    return normalised(params, batch, STATISTICS)


def everything(meta, support, key):
    return {name: meta[name] for name in ("w", "mean", "var")}


def all_adapted(mode):
    return lambda params, meta, batch, key: mode(params["w"], params, batch, key)


class MovingAverage(Adaptation):
    """One of somebody who knows better: its steps take the statistics from aux."""

    steps: int = 2
    origin: Origin = Origin.STEPS

    def init(self, problem, meta, support, key):
        return everything(meta, support, key)

    def step(self, problem, meta, support, state, key, inner_gradient):
        loss = loss_function("inner_loss", problem, needed_by="MovingAverage")
        (value, running), slope = inner_gradient(loss)(state, meta, support, key)
        return {**running, "w": state["w"] - 0.1 * slope["w"]}, Info(value, None)

    def params(self, state):
        return state


def own_head(params, meta, batch, key):
    """A loss of the trunk, as in test-time training: the head stays as `init` gave it."""
    return fit(params["w"], batch)


# --- data ----------------------------------------------------------------------------------------


def weighed(*weights):
    one = episodes()
    return Episode(one.support, one.query, jnp.array(weights))


def of_query(change):
    one = episodes()
    return Episode(one.support, change(one.query))


def same_tasks(count=3):
    return jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * count), episodes())


def labelled_all(label, name="query"):
    one = episodes()
    targets = jnp.full((3, 5), label).at[0, 0].set(0 if label == 1 else label)
    part = Examples(getattr(one, name).inputs, targets)
    return Episode(one.support, part) if name == "query" else Episode(part, one.query)


def leaked(batch):
    return Examples(batch.inputs.at[..., 1].set(batch.targets), batch.targets)


def one_hot_leaked(batch):
    labels = jax.random.randint(KEY, (3, 8), 0, 3)
    return Examples(jnp.concatenate([batch.inputs, jax.nn.one_hot(labels, 3)], -1), labels)


def drawn(rows):
    """Support sets whose rows are these of the eight that a task has."""
    one = episodes(rows=8)
    return Episode(jax.tree.map(lambda leaf: leaf[:, rows], one.support), one.query)


def with_replacement(replace):
    return drawn(jax.random.choice(jax.random.key(2), 8, (6,), replace=replace))


def labelled(inputs_of_last):
    """Six images under the labels 0 ... 5, the last of them again under a label of its own."""
    one = episodes(rows=6)
    inputs = one.support.inputs.at[:, 5].set(one.support.inputs[:, inputs_of_last])
    labels = jnp.tile(jnp.arange(6), (3, 1))
    return Episode(Examples(inputs, labels), Examples(one.query.inputs, labels))


def on_grids(*starts):
    one = episodes()
    grid = jnp.linspace(0, 1, 5)[None, :, None] * jnp.ones((3, 1, 3))
    of_support, of_query = (grid + first for first in starts)
    support = Examples(of_support, one.support.targets)
    return Episode(support, Examples(of_query, one.query.targets))


def of_few_values(seed, values=20):
    """Whole numbers, which agree by chance."""
    keys = jax.random.split(jax.random.key(seed), 4)
    draw = lambda key, n, shape: jax.random.randint(key, (3, 5, *shape), 0, n)
    half = lambda a, b: Examples(draw(a, values, (1,)), draw(b, 2, ()))
    return Episode(half(*keys[:2]), half(*keys[2:]))


def repeated_measurements():
    one = episodes()
    inputs = jnp.repeat(one.support.inputs[:, :1], 5, axis=1)
    return Episode(Examples(inputs, one.support.targets), one.query)


def windows_of_a_text():
    """Token by token, the next one; the same window twice."""
    tokens = jax.random.randint(KEY, (3, 6, 9), 0, 50)
    tokens = tokens.at[:, 1].set(tokens[:, 0])
    return Episode(Examples(tokens[..., :-1], tokens[..., 1:]), ())


# --- optimizers, derivatives ---------------------------------------------------------------------


def dead_unit(params, meta, batch, key):
    return inner(params * jnp.array([1.0, 1.0, 0.0]), meta, batch, key)


def minimum_at_the_start(params, meta, batch, key):
    """Its gradient is zero at first, and its value always."""
    return 0.0 * inner(params, meta, batch, key)


def by(*transformations, steps=2):
    return il.GradientDescent(optax.chain(*transformations), steps)


def zero_at_the_start(params, meta, batch, key):
    return jnp.sum((params - meta["w"] + 1e-2) ** 2 - 1e-4)


SGD = optax.sgd(0.1)


@jax.custom_vjp
def reverse_only(a):
    return jax.lax.while_loop(lambda x: jnp.abs(x * x - a) > 1e-5 * a, lambda x: (x + a / x) / 2, a)


reverse_only.defvjp(lambda a: (reverse_only(a), a), lambda a, bar: (bar / (2 * reverse_only(a)),))


@jax.custom_jvp
def both_modes(a):
    return reverse_only(a)


both_modes.defjvp(lambda p, t: (both_modes(*p), t[0] / (2 * both_modes(*p))))


def with_root(root):
    return lambda params, meta, batch, key: (
        inner(params, meta, batch, key) + root(1 + params @ params)
    )


def one_task():
    return episodes(tasks=1)


BROADCAST = r"every row with every other.*test_check_faults.py:\d+ \({}\).*\(5, 1\) and \(5,\)"
LOST = r"updates {}\['mean'\], and the update is lost.*test_check_faults.py:\d+ \(.*training_mode"
TRAINED = r"{}\['var'\] is the variance of a normalisation and is trained.*\(normalised\)"
STEEP = r"no derivative at a gradient of zero.*eps_root=1e-8.*optax.clip\(1.0\)"
REVERSE = (
    r"no forward-mode derivative.*test_check_faults.py.*jax.custom_jvp in its place, or Unroll"
)

FAULTS = {
    "a column of predictions": Fault(
        batches.broadcast_rows,
        {"inner": column_of_predictions},
        WARNING,
        BROADCAST.format("column_of_predictions"),
        ({"inner": first_column}, {"inner": two_columns}),
    ),
    "a column of targets": Fault(
        batches.broadcast_rows,
        {"outer": column_of_targets},
        WARNING,
        BROADCAST.format("column_of_targets"),
        ({"outer": outer}, {"outer": two_columns}),
    ),
    "columns under jit": Fault(
        batches.broadcast_rows,
        {"outer": chosen_from_columns},
        WARNING,
        BROADCAST.format("chosen_from_columns"),
        ({"outer": lazy_kernel}, {"outer": one_feature}),
    ),
    "support unread": Fault(
        batches.losses_read_data,
        {"inner": no_data},
        WARNING,
        r"inner_loss does not read the support set.*Episode\(support=\(\)",
        (
            {"inner": inner},
            {"inner": no_data, "data": Episode((), episodes().query)},
            {"inner": no_data, "init": lambda meta, support, key: meta["w"] + support.inputs[0]},
        ),
    ),
    "query unread": Fault(
        batches.losses_read_data,
        {"outer": no_data},
        WARNING,
        r"outer_loss does not read the query set.*Episode\(query=\(\)",
        ({"outer": outer}, {"outer": no_data, "data": Episode(episodes().support, ())}),
    ),
    "outputs that are no classes": Fault(
        batches.losses_read_data,
        {"outer": all_outputs, "data": three_ways(4)},
        WARNING,
        r"does not read the classes.*models.cross_entropy\(logits, batch\)",
        (
            {"outer": of_the_model, "inner": of_the_model, "data": three_ways(4)},
            {"outer": of_its_classes, "inner": of_its_classes, "data": three_ways(4)},
        ),
    ),
    "masked rows that count": Fault(
        masks.masked_rows,
        {"outer": every_row, "inner": rows_of_the_mask, "data": masked()},
        WARNING,
        r"outer_loss counts rows that the mask excludes.*2 rows.*models.mean_squared_error",
        (
            {"outer": rows_of_the_mask, "inner": rows_of_the_mask, "data": masked()},
            {"learn": il.MiniBatches(LEARN, 2), "outer": rows_of_the_mask, "data": masked()},
        ),
    ),
    "dropout of a constant key": Fault(
        randomness.keys_of_draws,
        {"inner": same_dropout},
        WARNING,
        r"inner_loss draws the same random numbers.*\(dropout\).*the key that the loss is given",
        ({"inner": own_dropout},),
    ),
    "dropout of a constant raw key": Fault(
        randomness.keys_of_draws,
        {"outer": same_dropout_of_raw_keys},
        WARNING,
        r"outer_loss draws the same random numbers",
        ({"outer": own_dropout},),
    ),
    "fixed numbers drawn within": Fault(
        randomness.keys_of_draws,
        {"outer": projected_within},
        WARNING,
        r"outer_loss draws the same.*\(projected_within\).*drawn outside the loss",
        ({"outer": projected},),
    ),
    "random state in meta": Fault(
        randomness.keys_of_draws,
        {"inner": seeded, "meta": SEEDED},
        ERROR,
        r"draws random numbers with a key in meta\['seed'\].*and the leaf left out",
        ({"inner": own_dropout},),
    ),
    "statistics in meta, lost": Fault(
        statistics.running_statistics,
        {"inner": training_mode, "outer": training_mode, "meta": WITH_STATISTICS},
        WARNING,
        LOST.format("meta"),
        ({"inner": with_batch_statistics}, {"inner": with_fixed_statistics}),
    ),
    "statistics in meta, trained": Fault(
        statistics.running_statistics,
        {"outer": evaluation_mode, "meta": WITH_STATISTICS},
        WARNING,
        TRAINED.format("meta"),
        ({"outer": with_batch_statistics}, {"outer": with_fixed_statistics}),
    ),
    "statistics in params": Fault(
        statistics.running_statistics,
        {
            "init": everything,
            "inner": all_adapted(training_mode),
            "outer": all_adapted(evaluation_mode),
            "meta": WITH_STATISTICS,
        },
        WARNING,
        LOST.format("params") + ".*" + TRAINED.format("params"),
        (
            {"inner": with_batch_statistics, "outer": with_batch_statistics},
            {
                "init": lambda meta, support, key: {"w": meta["w"], "head": meta["w"]},
                "inner": own_head,
                "outer": lambda p, m, b, k: fit(p["w"] + p["head"], b),
            },
            {
                "init": everything,
                "inner": all_adapted(training_mode),
                "outer": all_adapted(with_batch_statistics),
                "meta": WITH_STATISTICS,
                "learn": MovingAverage(),
            },
        ),
    ),
    "a negative weight": Fault(
        batch_of_episodes.weights_not_negative,
        {"data": weighed(1.0, -0.5, 1.0)},
        WARNING,
        r"1 of 3 tasks are negative.*task 1: -0.5.*weight=jnp.maximum\(weight, 0\)",
        ({"data": weighed(1.0, 0.0, 1.0)},),
    ),
    "weights that cancel": Fault(
        batch_of_episodes.weights_not_negative,
        {"data": weighed(1.0, -2.0, 1.0)},
        ERROR,
        r"divides by the sum of the weights",
        ({"data": weighed(1.0, 0.0, 1.0)},),
    ),
    "weights of zero": Fault(
        batch_of_episodes.weights_not_negative,
        {"data": weighed(0.0, 0.0, 0.0)},
        ERROR,
        r"no task counts",
        ({"data": weighed(0.0, 1.0, 0.0)},),
    ),
    "the same task again": Fault(
        batch_of_episodes.same_tasks,
        {"data": same_tasks()},
        WARNING,
        r"all 3 tasks are the same.*with a key of its own; a batch of one",
        (
            {"data": same_tasks(1)},
            {"data": same_tasks(), "inner": own_dropout},
            {"data": same_tasks(), "by": il.EvolutionStrategies(2, 0.1)},
        ),
    ),
    "no labels": Fault(
        batch_of_episodes.no_labels,
        {"data": labelled_all(-100)},
        WARNING,
        r"no row of the query sets has a label.*all targets are -100.*labels from 0 to classes",
        ({"data": labelled_all(1)}, {"data": episodes()}),
    ),
    "no labels in the support sets": Fault(
        batch_of_episodes.no_labels,
        {"data": labelled_all(-100, "support")},
        WARNING,
        r"no row of the support sets has a label",
        ({"data": labelled_all(1, "support")},),
    ),
    "targets among the inputs": Fault(
        batch_of_episodes.targets_among_inputs,
        {"data": of_query(leaked)},
        WARNING,
        r"query inputs contain the targets.*episodes.query.inputs.*inputs without their targets",
        ({"data": episodes()},),
    ),
    "one-hot targets among the inputs": Fault(
        batch_of_episodes.targets_among_inputs,
        {"data": Episode((), one_hot_leaked(episodes(rows=8).query))},
        WARNING,
        r"query inputs contain the targets.*one-hot",
        ({"data": three_ways(4)}, {"data": of_few_values(0, values=2)}),
    ),
    "rows drawn with replacement": Fault(
        repeats.repeats,
        {"data": with_replacement(True)},
        WARNING,
        r"support sets have rows twice in 3 of 3.*jax.random.choice\(.*replace=False",
        (
            {"data": with_replacement(False)},
            {"data": repeated_measurements()},
            {"data": windows_of_a_text()},
            *({"data": of_few_values(seed)} for seed in range(20)),
        ),
    ),
    "rows twice in one task": Fault(
        repeats.repeats,
        {"data": jax.tree.map(lambda leaf: leaf[:1], drawn(jnp.array([0, 1, 2, 2])))},
        WARNING,
        r"support sets have rows twice in 1 of 1 tasks.*task 0: rows 2 and 3",
        ({"data": jax.tree.map(lambda leaf: leaf[:1], drawn(jnp.array([0, 1, 2, 3])))},),
    ),
    "an image under two labels": Fault(
        repeats.repeats,
        {"data": labelled(0)},
        WARNING,
        r"one input has two labels in 3 of 3 tasks.*task 0: 1 pairs of rows",
        ({"data": labelled(5)},),
    ),
    "a grid for both sets": Fault(
        repeats.overlap,
        {"data": on_grids(0.0, 0.0)},
        NOTE,
        r"same inputs, with other targets.*inputs drawn for each set",
        ({"data": on_grids(0.0, 0.1)}, *({"data": of_few_values(seed)} for seed in range(20))),
    ),
    "adam, dense": Fault(
        inner_loop.steep_at_zero,
        {"learn": by(optax.adam(0.1))},
        NOTE,
        r"no gradient of these tasks is zero.*" + STEEP.partition(".*")[2],
        ({"learn": by(optax.adam(0.1, eps_root=1e-8))}, {"learn": by(SGD)}),
    ),
    "adam, with a dead unit": Fault(
        inner_loop.steep_at_zero,
        {"inner": dead_unit, "learn": by(optax.adam(0.1))},
        WARNING,
        STEEP,
        ({"inner": dead_unit, "learn": by(optax.adam(0.1, eps_root=1e-8))},),
    ),
    "clipping by the norm, dense": Fault(
        inner_loop.steep_at_zero,
        {"inner": dead_unit, "learn": by(optax.clip_by_global_norm(1.0), SGD)},
        NOTE,
        STEEP,
        ({"learn": by(optax.clip(1.0), SGD)},),
    ),
    "clipping by the norm of nothing": Fault(
        inner_loop.steep_at_zero,
        {"inner": minimum_at_the_start, "learn": by(optax.clip_by_global_norm(1.0), SGD)},
        WARNING,
        STEEP,
        ({"inner": minimum_at_the_start, "learn": by(optax.clip(1.0), SGD)},),
    ),
    "clipping by the norms of parameters": Fault(
        inner_loop.steep_at_zero,
        {"inner": minimum_at_the_start, "learn": by(optax.adaptive_grad_clip(0.1), SGD)},
        WARNING,
        STEEP,
        ({"inner": minimum_at_the_start, "learn": by(optax.clip(1.0), SGD)},),
    ),
    "an optimizer that is NaN": Fault(
        values.finite_and_not_zero,
        {"learn": by(optax.contrib.mechanize(SGD))},
        ERROR,
        r"\(mechanize\).*div in the optimizer.*another optimizer, such as optax.sgd\(rate\)",
        ({"learn": by(SGD)},),
    ),
    "a loss that grows from zero": Fault(
        inner_loop.inner_loss_falls,
        {"inner": zero_at_the_start, "learn": by(optax.sgd(-3.0), steps=6)},
        WARNING,
        r"inner loop diverges.*lower inner learning rate",
        (
            {"inner": zero_at_the_start, "learn": by(optax.sgd(0.1), steps=6)},
            {"inner": zero_at_the_start, "learn": by(optax.sgd(-0.1), steps=1)},
        ),
    ),
    "reverse mode alone": Fault(
        tracing.missing_derivatives,
        {"inner": with_root(reverse_only), "by": il.ForwardMode()},
        ERROR,
        REVERSE,
        ({"inner": with_root(both_modes), "by": il.ForwardMode()},),
    ),
    "reverse mode alone, one task": Fault(
        tracing.missing_derivatives,
        {"inner": with_root(reverse_only), "by": il.Unroll(il.MixedMode()), "data": one_task()},
        ERROR,
        REVERSE,
        ({"inner": with_root(both_modes), "by": il.Unroll(il.MixedMode()), "data": one_task()},),
    ),
    "reverse mode alone, which suffices": Fault(
        tracing.missing_derivatives,
        {"inner": with_root(reverse_only)},
        NOTE,
        REVERSE,
        ({"inner": with_root(both_modes)},),
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_and_its_cures_work(fault):
    assert fault.look in {*chain(*TRACED), *chain(*RUN)}
    said = found(fault.look, **fault.faulty)
    assert re.search(fault.message, "\n".join(map(str, said)), re.DOTALL), said
    assert said[0].severity is fault.severity
    for right in fault.right:
        assert not found(fault.look, **right), right


# --- what check could not take -------------------------------------------------------------------


class WithShift(Adaptation):
    """Its inner loss has a parameter that `init` does not return."""

    steps: int = 2
    origin: Origin = Origin.STEPS

    def init(self, problem, meta, support, key):
        return start(meta, support, key)

    def step(self, problem, meta, support, state, key, inner_gradient):
        loss = loss_function("inner_loss", problem, needed_by="WithShift")
        shifted = {"w": state, "shift": jnp.zeros((), state.dtype)}
        (value, aux), slope = inner_gradient(loss)(shifted, meta, support, key)
        return state - 0.1 * slope["w"], Info(value, aux)

    def params(self, state):
        return state


def test_an_adaptation_may_give_the_inner_loss_parameters_of_its_own():
    def shifted(params, meta, batch, key):
        return jnp.mean((batch.inputs @ params["w"] + params["shift"] - batch.targets) ** 2)

    def stopped(params, meta, batch, key):
        return shifted(params, meta, batch, key) * jnp.exp(jax.lax.stop_gradient(meta["scale"]))

    outer = lambda p, m, b, k: fit(p, b) * jnp.exp(m["scale"])
    assert not check(
        il.Problem(start, shifted, outer), WithShift(), META, episodes(), KEY, run=False
    )
    assert not found(derivatives.finite_differences, inner=shifted, outer=outer, learn=WithShift())
    with pytest.raises(NotChecked, match="inner_loss reads other parameters"):
        found(inner_loop.inner_loss_falls, inner=shifted, outer=outer, learn=WithShift())
    only_inside = il.Problem(start, stopped, lambda p, m, b, k: fit(p, b))
    (error,) = check(only_inside, WithShift(), META, episodes(), KEY, run=False).errors
    assert "meta['scale'] is read, but its gradient is cut off" in error.problem


def test_a_set_may_be_a_sparse_matrix():
    one = episodes(tasks=5)
    half = lambda s: Examples(sparse.BCOO.fromdense(s.inputs, n_batch=1), s.targets)
    data = Episode(half(one.support), half(one.query))
    with jax.numpy_dtype_promotion("standard"):
        problem = il.Problem(start, inner, outer)
        assert not check(problem, LEARN, META, data, KEY, run=False)
        assert not check(problem, LEARN, META, elements(data, np.array([0])), KEY, run=False)
    assert not found(derivatives.finite_differences, data=data)
