"""Every law over every entry of one table; and every mutant caught by a law."""

import itertools

import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import pytest
from laws import LAWS, MANY, exists
from mutants import MUTANTS
from quadratic import quadratic_episodes, quadratic_meta
from variants import ADAPTATIONS, GRADIENTS, GradientCase, exact

import innerloop as il

pytestmark = pytest.mark.usefixtures("x64")


VALID = [pair for pair in itertools.product(ADAPTATIONS, GRADIENTS) if exists(*pair)]
# The oracle holds every meta-gradient after one adaptation, one of each kind after those that
# differ in what a meta-gradient sees of them (no steps, a state, losses on the way, drawn rows, a
# procedure, a solver), and the exact and the first-order one after all. The cross of the slots of
# Unroll has a file of its own. The other laws, which compile several programs each, are about
# `objective.py`: a pair of each kind keeps them. `make test` takes the oracle over every
# meta-gradient after one adaptation and the exact one after all; `make test-all` takes the rest.
_ALL_GRADIENTS = {MANY}
_ALL_KINDS = {"sgd-0", "adam", "multi-step-loss-scanned", "mini-batches", "procedure", "minimise"}
_EVERYWHERE = {"unroll", "first-order"}
_LAWFUL = {
    "sgd-12-scanned": {
        *("unroll", "mixed-kept", "first-order", "bound-mixed-segments-1", "truncated"),
        *("forward-mode-random", "clipped", "reptile", "evolution-chunks", "implicit-neumann"),
    },
    "multi-step-loss-scanned": {"unroll"},
    "mini-batches": {"unroll"},
    "procedure": {"unroll"},
    "minimise": {"implicit"},
    "svm-head": {"unroll"},
}


def _adaptation_kind(variant):
    direct = isinstance(variant.adaptation, il.extend.DirectAdaptation)
    return il.extend.DirectAdaptation if direct else type(variant.adaptation)


def _gradient_kind(case):
    gradient = case.gradient
    return type(gradient.inner) if isinstance(gradient, il.Unroll) else type(gradient)


def _newcomers(table, chosen, kind):
    """The first of each kind that none of the chosen names is of."""
    known = {kind(each) for each in table if each.name in chosen}
    first = {kind(each): each.name for each in reversed(table)}
    return {name for its_kind, name in first.items() if its_kind not in known}


# What is of a kind of its own joins all laws by its line in the table.
_LAWFUL["sgd-12-scanned"] |= _newcomers(GRADIENTS, _LAWFUL["sgd-12-scanned"], _gradient_kind)
for _name in _newcomers(ADAPTATIONS, _LAWFUL, _adaptation_kind):
    _ALL_KINDS.add(_name)
    _LAWFUL[_name] = {next(e.name for variant, e in VALID if variant.name == _name)}


def _kind(case):
    gradient = case.gradient
    if not isinstance(gradient, il.Unroll):
        return type(gradient)
    return type(gradient.inner), isinstance(gradient.loop, il.gradients.Last)


_FIRST_OF_ITS_KIND = {_kind(each): each.name for each in reversed(GRADIENTS)}.values()


def _held_to_the_oracle(variant, case):
    return (
        variant.name in _ALL_GRADIENTS
        or case.name in _EVERYWHERE
        or (variant.name in _ALL_KINDS and case.name in _FIRST_OF_ITS_KIND)
    )


def _lawful(variant, case):
    return case.name in _LAWFUL.get(variant.name, ())


def _marks(variant, case):
    # One group per pair: its laws run in one process and share one compilation.
    marks = [pytest.mark.xdist_group(f"{variant.name}-{case.name}")]
    is_quick = variant.name in _ALL_GRADIENTS or case.name == "unroll"
    return marks if is_quick or _lawful(variant, case) else [*marks, pytest.mark.full]


def _pairs(keep):
    return [
        pytest.param(*pair, id=f"{pair[0].name}-{pair[1].name}", marks=_marks(*pair))
        for pair in VALID
        if keep(*pair)
    ]


# These compile most, and keep to `objective.py`, which other pairs hold to them in `make test`.
_SLOW = {laws.low_precision, laws.chunks, laws.closed_over_tracers}
_SLOWEST = {"forward-mode-random", "evolution-chunks", "svm-head"}


def _laws_of_pairs():
    """Every law for every pair, the slow ones of the slowest pairs in `make test-all` alone."""
    for pair in _pairs(_lawful):
        for law in LAWS:
            is_long = law in _SLOW and not _SLOWEST.isdisjoint(each.name for each in pair.values)
            marks = [*pair.marks, pytest.mark.full] if is_long else pair.marks
            yield pytest.param(*pair.values, law, id=f"{pair.id}-{law.__name__}", marks=marks)


@pytest.mark.parametrize(("variant", "case"), _pairs(_held_to_the_oracle))
def test_oracle(variant, case):
    """Checks by its own assertions."""
    laws.oracle(variant, case)


@pytest.mark.parametrize(("variant", "case", "law"), list(_laws_of_pairs()))
def test_law(variant, case, law):
    """Checks by its own assertions."""
    if law is laws.low_precision and (variant.float64_only or case.float64_only):
        pytest.skip("runs in float64 only")
    law(variant, case)


# Of those that Lineax and Equinox compute, which compare types that name a mesh.
_ON_A_DEVICE = {
    ("sgd-12-scanned", "exact-binomial"),
    ("sgd-12-scanned", "implicit-damped"),
    ("ridge-more-rows", "unroll"),
}


def _pairs_on_devices():
    for variant, case in laws.pairs_on_devices():
        name = (variant.name, case.name)
        marks = [pytest.mark.xdist_group("-".join(name))]
        marks += [] if name in _ON_A_DEVICE else [pytest.mark.full]
        yield pytest.param(variant, case, id="-".join(name), marks=marks)


@pytest.mark.parametrize(("variant", "case"), list(_pairs_on_devices()))
def test_on_a_device(variant, case):
    """On one, in this process; `on_eight_devices.py` runs the same on several."""
    laws.over_devices(variant, case)


@pytest.mark.parametrize("case", GRADIENTS, ids=lambda case: case.name)
def test_an_invalid_pair_is_refused_while_the_objective_is_built(case):
    """Its fidelity says which; nothing is traced, and the error names what to use instead."""
    for variant in ADAPTATIONS:
        build = lambda: il.meta_objective(variant.problem, variant.adaptation, case.gradient)  # noqa: B023
        if exists(variant, case):
            assert callable(build())
            continue
        with pytest.raises(il.errors.GradientError, match=r"does not exist.*Write: ") as caught:
            build()
        assert type(case.gradient).__name__ in str(caught.value)


def test_every_reason_against_a_pair_is_met_and_ends_in_a_cure():
    found = {
        fidelity[:4]
        for case in GRADIENTS
        for variant in ADAPTATIONS
        for fidelity in [case.gradient.fidelity(variant.adaptation, variant.problem)]
        if fidelity.kind == "undefined"
    }
    assert len(found) == 4
    assert all(write and reason.endswith(".") for _, reason, _, write in found)


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        pytest.param(
            mutant,
            law,
            id=f"{type(mutant).__name__}-{law.__name__}",
            marks=pytest.mark.xdist_group(type(mutant).__name__),
        )
        for mutant, law in MUTANTS
    ],
)
def test_mutant_breaks_its_law(mutant, law):
    """A law that a wrong meta-gradient keeps would be blind."""
    variant = next(variant for variant in ADAPTATIONS if variant.name == "sgd-fixed-rate")
    case = GradientCase(type(mutant).__name__, mutant, exact)
    with pytest.raises(AssertionError):
        law(variant, case)


def test_exact_gradient_of_gradient_descent_is_the_closed_form():
    """theta_K - c = (I - a A)^K (theta_0 - c): the gradient in start and rate, by matrix powers."""
    steps, rate = 7, 0.1
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    hessian, centre, query = root @ root.T / 3, rng.normal(size=3), rng.normal(size=3)
    problem = il.Problem(
        init=lambda meta, support, key: meta["start"],
        inner_loss=lambda params, meta, batch, key: (
            (params - batch["centre"]) @ (hessian @ (params - batch["centre"])) / 2
        ),
        outer_loss=lambda params, meta, batch, key: jnp.sum((params - batch) ** 2) / 2,
    )
    learn = il.GradientDescent(lambda meta: optax.sgd(meta["rate"]), steps)
    meta = {"start": jnp.array([1.0, -2.0, 0.5]), "rate": jnp.array(rate)}
    episode = il.Episode({"centre": jnp.array(centre)}, jnp.array(query))
    objective = il.meta_objective(problem, learn)
    grads, _ = jax.grad(objective, has_aux=True)(meta, episode, jax.random.key(0))

    contraction = np.eye(3) - rate * hessian
    power = np.linalg.matrix_power(contraction, steps)
    distance = np.array(meta["start"]) - centre
    residual = centre + power @ distance - query
    slope = -steps * hessian @ np.linalg.matrix_power(contraction, steps - 1)
    np.testing.assert_allclose(grads["start"], power.T @ residual, rtol=1e-12)
    np.testing.assert_allclose(grads["rate"], residual @ slope @ distance, rtol=1e-12)


def test_one_step_is_identity_minus_rate_times_hessian():
    """The seed's identity on a network: (I - a H) grad L_query(theta'), H v computed by itself."""
    rate = 0.3
    network = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
    loss = lambda params, batch: jnp.mean((network(params, batch[0]) - batch[1]) ** 2)
    problem = il.Problem(
        init=lambda meta, support, key: meta,
        inner_loss=lambda params, meta, batch, key: loss(params, batch),
        outer_loss=lambda params, meta, batch, key: loss(params, batch),
    )
    keys = iter(jax.random.split(jax.random.key(1), 6))
    meta = {
        "a": jax.random.normal(next(keys), (2, 8)),
        "b": jax.random.normal(next(keys), (8, 1)),
    }
    support, query = (
        (jax.random.normal(next(keys), (6, 2)), jax.random.normal(next(keys), (6, 1)))
        for _ in range(2)
    )
    objective = il.meta_objective(problem, il.GradientDescent(optax.sgd(rate), 1))
    got, _ = jax.grad(objective, has_aux=True)(meta, il.Episode(support, query), jax.random.key(0))

    theta = jax.tree.map(lambda p, g: p - rate * g, meta, jax.grad(loss)(meta, support))
    vector = jax.grad(loss)(theta, query)
    # Central differences of the gradient: an independent Hessian-vector product.
    h = 1e-5
    at = lambda s: jax.grad(loss)(jax.tree.map(lambda p, v: p + s * h * v, meta, vector), support)
    product = jax.tree.map(lambda up, down: (up - down) / (2 * h), at(1), at(-1))
    expected = jax.tree.map(lambda v, hv: v - rate * hv, vector, product)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), got, expected)
    # Forward over reverse: the same product to rounding.
    _, product = jax.jvp(lambda p: jax.grad(loss)(p, support), (meta,), (vector,))
    expected = jax.tree.map(lambda v, hv: v - rate * hv, vector, product)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, expected)


def test_memory_is_flat_over_a_thousand_outer_steps():
    """No live array is left behind by an outer step."""
    variant = ADAPTATIONS[1]
    step = jax.jit(il.meta_value_and_grad(variant.problem, variant.adaptation))
    meta, episodes = quadratic_meta(), quadratic_episodes()
    counts = []
    for i in range(1000):
        _, grads = step(meta, episodes, jax.random.key(i))
        meta = jax.tree.map(lambda p, g: p - 0.001 * g, meta, grads)
        if i in (10, 999):
            counts.append(len(jax.live_arrays()))
    assert counts[0] == counts[1]
    assert step._cache_size() == 1
