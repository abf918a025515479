"""`plan`: what it chooses fits, is exact, and nothing was run to find it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from quadratic import LEARN, assert_close, quadratic_episodes, quadratic_meta, quadratic_problem

import innerloop as il
from innerloop.diagnostics._plan import plan
from innerloop.diagnostics.amounts import format_bytes, parse_bytes
from innerloop.diagnostics.candidates import chunk_sizes
from innerloop.diagnostics.compiled import compile_ahead
from innerloop.errors import GradientError, StructureError
from innerloop.trees import tree_bytes

KEY = jax.random.key(0)
SIZES = [8, 64, 1]


def network(steps=2, tasks=4, loss=il.models.mean_squared_error):
    """MAML on a small network: `(problem, adaptation, meta, episodes)`, shapes alone."""
    recipe = il.recipes.maml(il.models.mlp(SIZES), loss, 0.01, steps)

    def sample():
        examples = il.Examples(*[jnp.zeros((tasks, 32, width)) for width in (SIZES[0], SIZES[-1])])
        return il.Episode(examples, examples)

    meta = jax.eval_shape(recipe.init_meta, KEY)
    return recipe.problem, recipe.adaptation, meta, jax.eval_shape(sample)


@functools.cache
def planned(kib):
    """The plan for the small network."""
    return plan(*network(), kib * 1024)


def compiled_memory(asked, gradient, chunk=None):
    problem, adaptation, meta, episodes = asked
    function = il.meta_value_and_grad(problem, adaptation, gradient, chunk=chunk)
    return compile_ahead(function, meta, episodes, KEY).memory


# --- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kib", [1_000_000, 70])
def test_the_choice_fits_and_is_what_was_forecast(kib):
    asked, made = network(), planned(kib)
    assert made.memory <= made.budget == kib * 1024
    assert compiled_memory(asked, made.gradient, made.chunk) == made.memory
    assert made.gradient.fidelity(asked[1]).kind == "exact"


def test_it_says_what_it_compiles():
    lines = []
    chosen = plan(*network(), "1GiB", report=lines.append)
    assert len(lines) == chosen.compilations
    assert all(line.startswith("compiling ") for line in lines)
    assert lines[0] == "compiling Unroll(MixedMode()), 1 tasks at a time"


def test_what_was_compiled_and_not_chosen_does_not_fit():
    made = planned(70)
    assert sum(len(option.tried) for option in made.options) == made.compilations > 1
    for option in made.options:
        for chunk, size in option.tried:
            chosen = option.gradient is made.gradient and chunk == (made.chunk or made.tasks)
            assert (size <= made.budget) == chosen
        assert bool(option.tried) == (option.verdict != "not needed")


def test_a_larger_budget_never_goes_further_down_the_order():
    plans = [planned(kib) for kib in (70, 400, 1_000_000)]
    places = [[option.verdict for option in made.options].index("chosen") for made in plans]
    assert places == sorted(places, reverse=True)
    assert plans[0].memory < plans[-1].memory


def test_more_tasks_at_a_time_stop_where_they_are_not_faster(monkeypatch):
    asked, limit = network(), planned(1_000_000)
    assert limit.chunk is None
    monkeypatch.setattr("innerloop.diagnostics._plan.AT_A_TIME", 1)
    assert plan(*asked, "1GiB").chunk == 1


def test_a_budget_is_met_to_the_byte():
    made = planned(1_000_000)
    asked, only = network(), {"gradients": [made.gradient]}
    again = plan(*asked, made.memory, **only)
    assert (again.gradient, again.chunk, again.memory) == (made.gradient, made.chunk, made.memory)
    assert plan(*asked, made.memory - 1, **only).memory < made.memory


def test_a_given_chunk_is_kept():
    asked = network()
    only = [il.Unroll()]
    assert plan(*asked, "1GiB", chunk=3, gradients=only).chunk == 3
    assert plan(*asked, "1GiB", chunk=99, gradients=only).chunk is None
    with pytest.raises(StructureError, match="chunk must be"):
        plan(*asked, "1GiB", chunk=0)


def test_only_given_gradients_are_considered():
    made = plan(*network(), "1GiB", gradients=[il.FirstOrder()])
    assert made.gradient == il.FirstOrder()
    assert [option.gradient for option in made.options] == [il.FirstOrder()]


@pytest.mark.parametrize(
    ("tasks", "sizes"), [(1, [1]), (5, [5, 3, 2, 1]), (8, [8, 4, 2, 1]), (12, [12, 6, 3, 2, 1])]
)
def test_chunks_are_halved(tasks, sizes):
    assert chunk_sizes(tasks) == sizes


# --- its gradient ------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["1GiB", "8KiB"])
def test_the_gradient_is_exact(x64, budget):
    problem, meta, episodes = quadratic_problem(), quadratic_meta(), quadratic_episodes()
    made = plan(problem, LEARN, meta, episodes, budget)
    expected = il.meta_value_and_grad(problem, LEARN)(meta, episodes, KEY)
    planned = jax.jit(il.meta_value_and_grad(problem, LEARN, made.gradient, chunk=made.chunk))(
        meta, episodes, KEY
    )
    assert_close(planned[0][0], expected[0][0])
    assert_close(planned[1], expected[1])


def test_a_plan_is_a_result_and_no_gradient():
    problem, adaptation, *_ = network()
    made = planned(1_000_000)
    hash(made)
    with pytest.raises(StructureError, match=r"gradient must be a meta-gradient.*Write: "):
        il.meta_objective(problem, adaptation, made)


# --- nothing is run -----------------------------------------------------------------------------


def test_nothing_is_run():
    ran = []

    def loud(params, meta, batch, key):
        jax.debug.callback(lambda: ran.append(None))
        return jnp.sum((params - batch) ** 2)

    problem = il.Problem(lambda meta, support, key: meta, loud, loud)
    learn = il.GradientDescent(optax.sgd(0.1), 2)
    meta, episodes = jnp.ones(3), il.Episode(jnp.ones((4, 3)), jnp.ones((4, 3)))
    plan(problem, learn, meta, episodes, "1GiB")
    jax.effects_barrier()
    assert ran == []


def test_keys_and_integers_among_episodes_are_taken(x64):
    made = plan(quadratic_problem(), LEARN, quadratic_meta(), quadratic_episodes(), "1GiB")
    assert made.tasks == 5


# --- which candidates ---------------------------------------------------------------------------


def test_a_gradient_that_the_losses_refuse_is_left_out():
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, bar: (2 * x * bar,))

    def loss(params, meta, batch, key):
        return jnp.sum(square(params - batch))

    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    learn = il.GradientDescent(optax.sgd(0.1), 2)
    meta, episodes = jnp.ones(3), il.Episode(jnp.ones((4, 3)), jnp.ones((4, 3)))
    made = plan(problem, learn, meta, episodes, "1GiB", gradients=[il.ForwardMode(), il.Unroll()])
    refused = [option for option in made.options if "forward mode" in option.verdict]
    assert refused and all(option.gradient != made.gradient for option in refused)
    assert "forward mode" in str(made)


def test_a_solver_is_differentiated_implicitly(x64):
    learn = il.Minimise(optx.GradientDescent(0.1, rtol=1e-3, atol=1e-3))
    problem, meta = quadratic_problem(), quadratic_meta()
    made = plan(problem, learn, meta, quadratic_episodes(), "1GiB")
    assert isinstance(made.gradient, il.Implicit)
    assert [option.verdict for option in made.options] == ["chosen"]


def test_a_procedure_has_little_to_choose_from():
    problem = il.Problem(None, None, lambda params, meta, batch, key: jnp.sum(params * batch))
    learn = il.Procedure(lambda meta, support, key: meta * support)
    meta, episodes = jnp.ones(64), il.Episode(jnp.ones((4, 64)), jnp.ones((4, 64)))
    made = plan(problem, learn, meta, episodes, "1GiB")
    assert [option.gradient for option in made.options] == [il.Unroll()]


def test_few_meta_parameters_and_many_steps_go_forward_where_memory_is_short():
    def inner_loss(params, meta, batch, key):
        return jnp.sum((params - batch) ** 2)

    problem = il.Problem(lambda meta, support, key: jnp.zeros(4096), inner_loss, inner_loss)
    learn = il.GradientDescent(lambda meta: optax.sgd(meta), 400)
    episodes = il.Episode(jnp.zeros((2, 4096)), jnp.zeros((2, 4096)))
    ample = plan(problem, learn, jnp.float32(0.1), episodes, "1GiB")
    short = plan(problem, learn, jnp.float32(0.1), episodes, "180KiB")
    assert short.memory < ample.memory
    assert isinstance(short.gradient, il.ForwardMode)


# --- what fits nothing --------------------------------------------------------------------------


def test_where_nothing_exact_fits_it_says_what_would():
    asked = network(steps=4)
    with pytest.raises(StructureError) as raised:
        plan(*asked, "24KiB", chunk=1)
    message = str(raised.value)
    assert "the least is" in message
    assert "Unroll(loop=Last(2))" in message and "Unroll(HoldConstant())" in message
    assert "allow=" not in message  # no biased one fits either
    needed = int(message.split("plan(..., memory=")[1].split(")")[0])
    assert plan(*asked, needed, chunk=1).memory == needed


def test_a_biased_one_is_taken_only_if_allowed_and_needed():
    asked = network(steps=4)
    both = {"allow": ("exact", "biased"), "chunk": 1}
    assert plan(*asked, "1GiB", **both).gradient.fidelity(asked[1]).kind == "exact"
    smallest = plan(*asked, "1GiB", gradients=[il.FirstOrder()], chunk=1).memory
    with pytest.raises(StructureError, match=r"allow=\('exact', 'biased'\)"):
        plan(*asked, smallest, chunk=1)
    made = plan(*asked, smallest, **both)
    assert made.gradient.fidelity(asked[1]).kind == "biased"
    assert made.memory <= smallest
    assert {option.kind for option in made.options} == {"exact", "biased"}


def test_what_the_losses_close_over_is_counted():
    """A matrix of 4 MiB does not fit into 1 MiB because it is not an argument."""
    matrix = jnp.ones((1024, 1024))
    loss = lambda params, meta, batch, key: jnp.mean((matrix @ params - batch) ** 2)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    episodes = il.Episode(jnp.zeros((2, 1)), jnp.zeros((2, 1)))
    asked = (problem, il.GradientDescent(optax.sgd(0.1), 1), jnp.ones(1024), episodes)
    with pytest.raises(StructureError, match="fits the budget"):
        plan(*asked, "1MiB")
    assert plan(*asked, "16MiB").memory > 2**22


def test_a_budget_below_the_arguments_is_refused_without_compiling(monkeypatch):
    def compiled(*args):
        raise AssertionError("it compiled")

    monkeypatch.setattr("innerloop.diagnostics._plan.compile_for", compiled)
    with pytest.raises(StructureError, match="smaller than the arguments and results"):
        plan(*network(), "4KiB")


@pytest.mark.parametrize(
    "budget", ["2 parsecs", "GiB", "", "-1GiB", "0", 0, -3, True, None, "1e400", float("nan"), [2]]
)
def test_unreadable_budgets(budget):
    with pytest.raises(StructureError, match="not an amount of memory"):
        plan(*network(), budget)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1.5 gb", 1_500_000_000),
        ("12", 12),
        ("12 B", 12),
        (12, 12),
        (np.int64(12), 12),
    ],
)
def test_budgets(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(12, "12 B"), (1536, "1.50 KiB"), (2**30, "1.00 GiB"), (123 * 2**20, "123 MiB")],
)
def test_formatted(size, text):
    assert format_bytes(size) == text


def test_sizes_of_trees():
    assert tree_bytes({"a": jnp.ones((3, 2)), "b": jax.ShapeDtypeStruct((4,), jnp.int8)}) == 28
    assert tree_bytes(jax.random.split(KEY, 3)) == 24


@pytest.mark.parametrize("allow", [(), "exact", ("exact", "cheap"), ("unbiased",)])
def test_unknown_fidelities(allow):
    with pytest.raises(StructureError, match="allow must be"):
        plan(*network(), "1GiB", allow=allow)


# --- losses that raise --------------------------------------------------------------------------


def test_what_a_loss_raises_is_raised():
    def broken(params, meta, batch, key):
        raise KeyError("no such thing")

    problem, adaptation, meta, episodes = network()
    problem = il.Problem(problem.init, broken, problem.outer_loss)
    with pytest.raises(StructureError, match="inner_loss failed"):
        plan(problem, adaptation, meta, episodes, "1GiB")


def test_where_no_gradient_exists_the_first_reason_is_raised():
    loss = lambda params, meta, batch, key: jnp.sum(params**2)
    problem = il.Problem(lambda meta, support, key: jnp.ones(3), loss, loss)
    learn = il.GradientDescent(optax.sgd(0.1), 2)
    with pytest.raises(GradientError, match="identically zero"):
        plan(problem, learn, jnp.ones(3), il.Episode(jnp.ones((2, 1)), jnp.ones((2, 1))), "1GiB")


def test_meta_that_is_not_floating_is_named():
    problem, adaptation, _, episodes = network()
    with pytest.raises(StructureError, match="not a floating-point array"):
        plan(problem, adaptation, {"steps": jnp.arange(3)}, episodes, "1GiB")


# --- the table ----------------------------------------------------------------------------------


def test_it_prints_as_a_table():
    from rich.console import Console

    made = planned(70)
    text = str(made)
    assert "chosen" in text and format_bytes(made.memory) in text
    console = Console(width=160)
    with console.capture() as captured:
        console.print(made)
    assert "chosen" in captured.get()
    assert len({option.gradient for option in made.options}) == len(made.options)
