"""`compare`: its numbers against hand-computed ones, what it says of what fails, what it shows."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from jax.flatten_util import ravel_pytree
from PIL import Image
from quadratic import LEARN, quadratic_episodes, quadratic_meta, quadratic_problem

import innerloop as il
from innerloop.diagnostics._compare import compare
from innerloop.diagnostics.candidates import one_of_every_kind
from innerloop.diagnostics.comparison.result import Comparison, ComparisonRow
from innerloop.errors import GradientError, StructureError
from innerloop.gradients import gradient_name
from innerloop.lab.plots import error_against_cost

KEY = jax.random.key(7)
TASKS = 2


def quadratic(gradients, learn=LEARN, **settings):
    arguments = (quadratic_meta(jnp.float64), quadratic_episodes(tasks=TASKS), KEY)
    settings = {"seconds": 0.0} | settings
    return compare(quadratic_problem(), learn, *arguments, gradients, **settings)


def small(gradients=None, *, problem=None, learn=None, meta=None, **settings):
    """One scalar task: the inner optimum is at meta, the outer one at 1, the target."""
    problem = problem or scalar_problem()
    learn = learn or il.GradientDescent(optax.sgd(0.1), 2)
    meta = jnp.array([0.5, 2.0]) if meta is None else meta
    rows = jnp.ones((1, 2))
    settings = {"seconds": 0.0} | settings
    return compare(problem, learn, meta, il.Episode(rows, rows), KEY, gradients, **settings)


def scalar_problem(**changes):
    parts = {
        "init": lambda meta, support, key: jnp.zeros(2),
        "inner_loss": lambda params, meta, batch, key: jnp.sum((params - meta) ** 2),
        "outer_loss": lambda params, meta, batch, key: jnp.sum((params - batch) ** 2),
    }
    return il.Problem(**parts | changes)


def test_it_says_what_it_does():
    lines = []
    small([il.Unroll(), il.FirstOrder()], report=lines.append)
    compiling = ["compiling Unroll()", "compiling Unroll(HoldConstant())"]
    assert lines == [*compiling, "measuring errors", "measuring times"]


def vectors(gradient, keys):
    """Meta-gradients by the front door, flat, one per key."""
    f = jax.jit(il.meta_value_and_grad(quadratic_problem(), LEARN, gradient))
    meta, episodes = quadratic_meta(jnp.float64), quadratic_episodes(tasks=TASKS)
    return [np.asarray(ravel_pytree(f(meta, episodes, key)[1])[0]) for key in keys]


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def relative(a, b):
    return np.sqrt(((a - b) ** 2).sum() / (b**2).sum())


def test_values_by_hand(x64):
    """On the first of the keys."""
    result = quadratic(
        [il.Unroll(), il.FirstOrder(), il.Unroll(il.MixedMode(), il.Segments(1)), il.Truncated(2)],
        draws=3,
    )
    keys = jax.random.split(KEY, 3)[:1]
    (exact,) = vectors(il.Unroll(), keys)
    for name, gradient in (
        ("Unroll(HoldConstant())", il.FirstOrder()),
        ("Unroll(loop=Last(2))", il.Truncated(2)),
    ):
        row = result[name]
        (estimate,) = vectors(gradient, keys)
        np.testing.assert_allclose(row.cosine, cosine(estimate, exact), rtol=1e-10)
        np.testing.assert_allclose(row.relative_error, relative(estimate, exact), rtol=1e-10)
        assert row.relative_error > 0.05
        assert row.cosine_error is row.relative_error_error is None
        assert row.fidelity.kind == "biased"
    assert result["Unroll(MixedMode(), Segments(1))"].relative_error < 1e-10
    assert result["Unroll()"].relative_error == 0
    assert (result.reference, result.tasks, result.parameters) == ("Unroll()", TASKS, 9)


def test_stochastic_by_hand(x64):
    """Mean and standard error over the documented keys; chunks change nothing."""
    gradient, draws = il.ForwardMode(il.gradients.RandomDirections(4)), 6
    row = quadratic([gradient], draws=draws, chunk=1)["ForwardMode(RandomDirections(4))"]
    keys = jax.random.split(KEY, draws)
    pairs = zip(vectors(gradient, keys), vectors(il.Unroll(), keys), strict=True)
    pairs = list(pairs)
    for measure, mean, error in (
        (cosine, row.cosine, row.cosine_error),
        (relative, row.relative_error, row.relative_error_error),
    ):
        values = np.array([measure(*pair) for pair in pairs])
        np.testing.assert_allclose(mean, values.mean(), rtol=1e-8)
        np.testing.assert_allclose(error, values.std(ddof=1) / math.sqrt(draws), rtol=1e-8)
    # E ‖g - e‖² = (dim - 1) / n ‖e‖² for one task
    assert 0.3 < row.relative_error < math.sqrt(8 / 4) * 1.5


def test_memory_and_time():
    """Memory is the compiler's, of the function that the docstring names."""
    gradient, chunk = il.Truncated(1), 1
    result = small([gradient], chunk=chunk, seconds=0.01)
    learn = il.GradientDescent(optax.sgd(0.1), 2)
    f = il.meta_value_and_grad(scalar_problem(), learn, gradient, chunk=chunk)
    rows = jnp.ones((1, 2))
    arguments = (jnp.array([0.5, 2.0]), il.Episode(rows, rows), KEY)
    sizes = jax.jit(f).lower(*arguments).compile().memory_analysis()
    expected = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    expected += sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    row = result["Unroll(loop=Last(1))"]
    assert row.memory == expected
    assert 0 < row.seconds < 1 < 1 + row.compile_seconds < 100


def test_default_rows():
    """Every estimator has a row; on a problem that has all of them none is refused."""
    problem = scalar_problem(
        init=lambda meta, support, key: meta,
        inner_loss=lambda p, m, b, k: jnp.sum((p - b - m) ** 2),
    )
    result = small(problem=problem)
    names = [row.name for row in result.rows]
    biased = ("Unroll(HoldConstant())", "Unroll(loop=Last")
    for kind in ("Unroll()", *biased, "ForwardMode", "Reptile", "Implicit"):
        assert any(name.startswith(kind) for name in names)
    assert any(name.startswith("EvolutionStrategies") for name in names)
    assert [row.name for row in result.rows if row.refusal] == []
    assert all(row.seconds > 0 and row.memory > 0 for row in result.rows)


CLIPPED_TWICE = il.Clipped(il.Clipped(il.EvolutionStrategies(2, 0.1), 1e6), 1e6)


def test_what_is_stochastic_stays_so_when_it_is_clipped():
    """And where nothing is long enough to be clipped, it is the same."""
    drawn = {"plain": il.EvolutionStrategies(2, 0.1), "clipped": CLIPPED_TWICE}
    result = small(drawn, draws=4)
    plain, clipped = result["plain"], result["clipped"]
    assert plain.cosine_error > 0
    np.testing.assert_allclose(clipped.cosine, plain.cosine, rtol=1e-5)
    np.testing.assert_allclose(clipped.cosine_error, plain.cosine_error, rtol=1e-3)


def test_minimise_is_held_against_implicit():
    solver = il.Minimise(optx.BFGS(rtol=1e-5, atol=1e-5))
    result = small(learn=solver)
    assert result.reference == "Implicit()"
    for name in ("Unroll()", "Unroll(HoldConstant())", "ForwardMode()"):
        row = result[name]
        assert "run" in row.refusal or "solver" in row.refusal
        assert "Write: Implicit()" in row.refusal
        assert row.cosine is row.memory is row.seconds is row.fidelity is None
    assert result["EvolutionStrategies(16, 0.01, chunk=1)"].cosine > 0.5


def test_refused_while_tracing():
    """Implicit, where the optimum does not depend on meta (MAML)."""
    problem = scalar_problem(
        init=lambda meta, support, key: meta,
        inner_loss=lambda params, meta, batch, key: jnp.sum((params - batch) ** 2),
    )
    row = small([il.Implicit()], problem=problem)["Implicit()"]
    assert "does not depend on meta" in row.refusal
    assert "proximal" in row.refusal


def test_refused_when_run():
    """A linear solve that does not converge is a row too, and says what to do."""
    problem = scalar_problem(
        inner_loss=lambda params, meta, batch, key: (params - meta)[0] ** 2 + (params @ meta) * 0.1
    )
    result = small([il.Implicit()], problem=problem)
    row = result["Implicit()"]
    assert "did not converge" in row.refusal
    assert "Write: proximal" in row.refusal
    assert "Traceback" not in row.refusal
    assert row.cosine is row.seconds is None
    with pytest.raises(GradientError, match="the reference Implicit\\(\\) fails"):
        small([il.Unroll()], problem=problem, exact=il.Implicit())


def test_errors_of_other_libraries_are_refusals():
    """A custom rule without forward mode stops mixed mode alone."""

    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent,))

    @jax.custom_vjp
    def square(x):
        return jnp.sum(x**2)

    # its derivative has a custom rule again, which reverse over reverse takes and forward does not
    square.defvjp(lambda x: (square(x), x), lambda x, slope: (same(x) * (2 * slope)[None],))
    problem = scalar_problem(inner_loss=lambda params, meta, batch, key: square(params - meta))
    result = small(
        [il.Unroll(), il.Unroll(il.MixedMode(), il.Segments(1)), il.FirstOrder()], problem=problem
    )
    refusal = result["Unroll(MixedMode(), Segments(1))"].refusal
    assert "forward mode" in refusal and "\n" not in refusal


def _fails(params, meta, batch, key):
    raise NotImplementedError("not yet")


@pytest.mark.parametrize(
    "changes",
    [
        {"inner_loss": lambda params, meta, batch, key: params["missing"]},
        {"outer_loss": lambda params, meta, batch, key: params},
        {"inner_loss": _fails},
        {"init": lambda meta, support, key: meta @ jnp.ones(5)},
    ],
)
def test_a_broken_problem_raises(changes, monkeypatch):
    """Before anything is compiled."""
    monkeypatch.setattr("innerloop.diagnostics.comparison.entries.compile_for", None)
    with pytest.raises(StructureError):
        small(problem=scalar_problem(**changes))


def test_what_is_wrong_with_the_arguments():
    with pytest.raises(StructureError, match="needs meta-gradients"):
        small([])
    with pytest.raises(StructureError, match="needs meta-gradients"):
        small({})
    for stochastic in (il.EvolutionStrategies(2, 0.1), CLIPPED_TWICE):
        with pytest.raises(StructureError, match="draws"):
            small([stochastic], draws=1)
    with pytest.raises(StructureError, match="draws"):
        small([il.FirstOrder()], draws=0)
    with pytest.raises(StructureError, match="seconds"):
        small([il.FirstOrder()], seconds=-1.0)
    with pytest.raises(StructureError, match="chunk"):
        small([il.FirstOrder()], chunk=0)
    with pytest.raises(GradientError, match="does not exist"):
        small(learn=il.Minimise(optx.BFGS(1e-5, 1e-5)), exact=il.Unroll())
    assert len(small([il.FirstOrder()], draws=1).rows) == 2


def test_names():
    """As one would write them; those of a mapping are kept, equal ones numbered."""
    for name in (
        "Unroll()",
        "Unroll(MixedMode(), Segments(1))",
        "Unroll(loop=Segments())",
        "Unroll(MixedMode(), Binomial(5))",
        "Unroll(loop=Last(2))",
        "Unroll(loop=Last(2, identity=False))",
        "EvolutionStrategies(16, 0.01, chunk=1)",
        "ForwardMode(RandomDirections(16), chunk=1)",
        "Implicit(damping=0.5)",
    ):
        assert gradient_name(eval(name, vars(il) | vars(il.gradients))) == name
    same = [il.Truncated(0), il.Truncated(0), il.Unroll()]
    assert [row.name for row in small(same).rows] == [
        "Unroll(loop=Last(0))",
        "Unroll(loop=Last(0)) #2",
        "Unroll()",
    ]
    result = small({"mine": il.Unroll(), "fast": il.FirstOrder(lambda t, params: t < 1)})
    assert [row.name for row in result.rows] == ["mine", "fast"]
    assert result.reference == "mine"
    with pytest.raises(KeyError, match="none of mine, fast"):
        result["slow"]


def test_zero_exact_gradient():
    """Cosine and error are undefined, and the row says so."""
    result = small([il.FirstOrder()], meta=jnp.ones(2), problem=scalar_problem(
        init=lambda meta, support, key: meta,
        inner_loss=lambda params, meta, batch, key: jnp.sum((params - batch) ** 2)))  # fmt: skip
    row = result["Unroll(HoldConstant())"]
    assert math.isnan(row.cosine) and math.isnan(row.relative_error)
    assert "is zero" in row.note and row.note in " ".join(str(result).split())
    assert result.records()[1]["cosine"] is None


def test_estimates_that_are_not_finite():
    problem = scalar_problem(
        init=lambda meta, support, key: meta,
        outer_loss=lambda params, meta, batch, key: jnp.sum(jnp.sqrt(params - params)),
    )
    row = small([il.FirstOrder()], problem=problem)["Unroll(HoldConstant())"]
    assert math.isnan(row.cosine) and "exact meta-gradient is not finite" in row.note


def test_mixed_dtypes():
    meta = {"a": jnp.array([0.5], jnp.bfloat16), "b": jnp.array(2.0)}
    problem = scalar_problem(
        inner_loss=lambda params, meta, batch, key: jnp.sum(
            (params - meta["a"].astype(jnp.float32) - meta["b"][None]) ** 2
        )
    )
    result = small([il.Unroll(loop=il.Segments(1))], problem=problem, meta=meta)
    assert result.parameters == 2
    assert result["Unroll(loop=Segments(1))"].relative_error < 1e-2


def test_candidates():
    """Few meta-parameters get exact forward mode; long loops a fixed number of slots."""

    def names(steps, size):
        learn = il.GradientDescent(optax.sgd(0.1), steps)
        return [gradient_name(gradient) for gradient in one_of_every_kind(learn, jnp.zeros(size))]

    assert "ForwardMode()" in names(5, 10) and "ForwardMode()" not in names(5, 1000)
    assert "Unroll(loop=Binomial(5))" in names(32, 1) and "Unroll(loop=Last(16))" in names(32, 1)
    assert not any("checkpoint" in name or "Truncated" in name for name in names(1, 1))


@pytest.fixture
def table():
    """A comparison with a row of every sort; its numbers are made up."""
    row = lambda name, kind, **fields: ComparisonRow(
        name, il.Unroll(), il.extend.Fidelity(kind, f"What {name} drops."), **fields
    )
    cost = {"memory": 3 * 2**20, "compile_seconds": 1.5, "seconds": 0.0123}
    rows = (
        row("Unroll()", "exact", cosine=1.0, relative_error=0.0, **cost),
        row("Unroll(HoldConstant())", "biased", cosine=0.9, relative_error=0.412, **cost),
        row("Evolution", "unbiased", cosine=0.5, cosine_error=0.021,
            relative_error=1.2, relative_error_error=0.13, **cost),
        ComparisonRow("Implicit()", il.Implicit(), refusal="It is refused."),
        row("Broken", "biased", cosine=math.nan, relative_error=math.inf, note="N.", **cost),
    )  # fmt: skip
    return Comparison(rows, "Unroll()", 4, 10, 8)


def test_printed(table):
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 100
    line = lambda name: next(line for line in lines if line.startswith(name))
    assert line("Unroll()").split() == ["Unroll()", "exact", "1.0000", "0", "3.00", "12.3", "1.5"]
    assert line("Unroll(HoldConstant())").split()[2:4] == ["0.9000", "0.412"]
    assert "0.50 ± 0.02" in line("Evolution") and "1.2 ± 0.1" in line("Evolution")
    assert "refused" in line("Implicit()")
    assert "undefined" in line("Broken")
    text = " ".join(str(table).split())
    for sentence in ("What Unroll(HoldConstant()) drops.", "It is refused.", "N.", "4 tasks"):
        assert sentence in text
    assert "What Unroll() drops." not in text
    assert "\x1b" not in text


def test_json(table):
    data = json.loads(json.dumps(table.as_dict(), allow_nan=False))
    assert [row["name"] for row in data["rows"]] == [row.name for row in table.rows]
    assert data["rows"][4]["cosine"] is data["rows"][4]["relative_error"] is None
    assert data["rows"][1]["fidelity"]["kind"] == "biased"
    assert data["rows"][1]["memory"] == 3 * 2**20
    assert data["reference"] == "Unroll()"


def test_figure(table, tmp_path):
    path = error_against_cost(
        tmp_path / "folder" / "figure.png", table.records(), title=table.headline()
    )
    image = np.asarray(Image.open(path).convert("L"))
    assert image.shape[1] > 1200 and 0.005 < (image < 200).mean() < 0.5
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]
    with pytest.raises(StructureError, match="measured meta-gradients"):
        error_against_cost(tmp_path / "none.png", table.records()[3:], title="")
