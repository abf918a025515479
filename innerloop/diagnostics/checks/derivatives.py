"""Derivatives compared with finite differences, in float64."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from innerloop.adaptation import Origin
from innerloop.checks import is_floating
from innerloop.diagnostics.checks.source import asked_for, named_places, of_package, written_at
from innerloop.diagnostics.checks.subject import Subject, jit_quickly
from innerloop.diagnostics.findings import Finding, NotChecked, Severity
from innerloop.programs import between
from innerloop.trees import dot, elements, leaf_names

_STEP = 1e-5
"""Relative to the leaf's size, so that truncation and rounding errors are both below 1e-9."""
_TOLERANCE = 1e-3
_MOST_TASKS = 4
_MOST_LEAVES = 16

_RULES = ("custom_vjp_call", "custom_jvp_call", "stop_gradient")


def finite_differences(subject: Subject) -> Iterator[Finding]:
    """Checks the losses alone, which locates an error, and then the whole meta-objective.

    Raises:
        NotChecked: If the program cannot be run in float64, because the losses fix another type or
            round to one in between, which finite differences cannot resolve.
    """
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        try:
            subject = _with_wide_arrays(subject)
            findings = list(_of_losses(subject))
            # A solver stops within its tolerance, and finite differences would magnify that error.
            # They would see the dependence of a model state that the meta-gradient leaves out.
            solved = subject.adaptation.origin is Origin.SOLVER
            if not findings and not solved and not subject.holds_state:
                findings = list(_of_the_whole(subject))
        except NotChecked:
            raise
        except Exception as error:  # the code may be correct only in its own types
            raise NotChecked("the losses cannot be differentiated in float64") from error
    yield from findings


def _with_wide_arrays(subject: Subject) -> Subject:
    """The subject with its frozen arrays and model state in float64."""
    problem = subject.problem
    if problem.frozen is None and problem.state is None:
        return subject
    frozen, state = _in_float64((problem.frozen, problem.state))
    return dataclasses.replace(subject, problem=problem.holding(frozen, state))


def _of_losses(subject: Subject) -> Iterator[Finding]:
    arguments = _in_float64((subject.meta, *subject.task()))
    for name, (*at, batch, key) in subject.given_at(*arguments).items():
        at = _beside(_in_float64(at))
        loss, along = subject.loss(name), _directions(at)
        value = lambda at, loss=loss, rest=(batch, key): loss(*at, *rest)
        slope = lambda at, value=value, along=along: dot(jax.grad(value)(at), along)
        if _Derivative(value, at).is_wrong(along):
            place = f"{name}, {_rules_of(value, at)}"
            yield Finding(
                _meant(place, subject.severity(1)),
                f"the gradient of {name} is not the derivative of its value",
                place,
                "finite differences disagree: a custom rule or a stop_gradient hides a part",
                "a rule that matches the function, or the function without it",
            )
        elif name == "inner_loss" and _Derivative(slope, at).is_wrong(along):
            place = f"{name}, {_rules_of(value, at)}"
            yield Finding(
                subject.severity(2),
                f"the second derivative of {name} is not that of its gradient",
                place,
                "a custom rule whose backward pass is not itself differentiable leaves out the "
                "second-order part of the meta-gradient",
                "jax.custom_jvp, or a backward pass that reads its inputs; FirstOrder() does "
                "without second derivatives",
            )


def _of_the_whole(subject: Subject) -> Iterator[Finding]:
    objective, meta = subject.objective(subject.exact), _in_float64(subject.meta)
    tasks = elements((subject.episodes, subject.keys), np.arange(min(subject.tasks, _MOST_TASKS)))
    each = jax.vmap(lambda meta, *task: objective(meta, *task)[0], (None, 0, 0))
    value = lambda meta: jnp.mean(each(meta, *_in_float64(tasks)))
    derivative, along = _Derivative(value, meta), _directions(meta)
    if not derivative.is_wrong(along):
        return
    names, (moves, treedef) = leaf_names(meta), jax.tree.flatten(along)
    alone = lambda i: treedef.unflatten([v if i == j else 0 * v for j, v in enumerate(moves)])
    wrong = [
        f"meta{n}" for i, n in enumerate(names[:_MOST_LEAVES]) if derivative.is_wrong(alone(i))
    ]
    rules = _rules_of(value, meta)
    yield Finding(
        _meant(rules, subject.severity(2)),
        "the meta-gradient is not the derivative of the meta-objective",
        f"{', '.join(wrong) or 'meta'}; {rules}",
        "finite differences disagree: something on the way hides a part of the derivative, or the "
        "objective jumps here",
        "the operation without its custom rule or stop_gradient",
    )


class _Derivative:
    """A function and its gradient at a point, as one compiled program."""

    def __init__(self, function: Callable, at: PyTree):
        _require_smooth(function, at)
        self._at = at
        self._run = jit_quickly(jax.value_and_grad(function))
        value, self._gradient = self._run(at)
        self._here = float(value)

    def is_wrong(self, along: PyTree) -> bool:
        """Whether the slope along a direction differs from the limit of finite differences."""
        slope = float(dot(self._gradient, along))
        coarse = self._differences(along, 4 * _STEP)
        ahead, behind = self._differences(along, _STEP)
        fine = (ahead + behind) / 2
        # If two step sizes disagree, noise or a jump makes the differences unreliable; if the two
        # sides disagree, there is a kink at this point.
        doubt = 10 * max(abs(fine - sum(coarse) / 2), abs(ahead - behind))
        rounding = 1e-8 * (1 + abs(self._here))
        return abs(fine - slope) > max(_TOLERANCE * max(abs(fine), abs(slope)), rounding, doubt)

    def _differences(self, along: PyTree, step: float) -> tuple[float, float]:
        moved = lambda by: jax.tree.map(lambda x, v: x + by * v, self._at, along)
        ahead, behind = (float(self._run(moved(by))[0]) for by in (step, -step))
        return (ahead - self._here) / step, (self._here - behind) / step


def _directions(at: PyTree) -> PyTree:
    """A random direction, scaled to the size of each leaf."""
    generator = np.random.default_rng(0)

    def direction(leaf: np.ndarray) -> np.ndarray:
        size = np.sqrt(np.mean(np.square(leaf))) or 1.0
        return np.asarray(size * generator.normal(size=leaf.shape))

    return jax.tree.map(direction, at)


def _beside(at: PyTree) -> PyTree:
    """A nearby point, because values that start at zero often start at a kink."""
    return jax.tree.map(lambda x, v: np.asarray(x + 1e-3 * v), at, _directions(at))


def _require_smooth(function: Callable, at: PyTree) -> None:
    """Raise `NotChecked` if a value in between is rounded to a narrower type than float64."""
    program = jax.make_jaxpr(function)(at)
    for operation in between(program, range(len(jax.tree.leaves(at)))):
        for atom in operation.eqn.outvars:
            dtype = getattr(atom.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 8:
                raise NotChecked(f"{written_at(operation)} computes in {dtype.name}")


def _meant(rules: str, severity: Severity) -> Severity:
    """The severity, lower for the user's own stop_gradient, which may be intended."""
    stopped = "stop_gradient" in rules and "custom" not in rules
    return Severity.WARNING if stopped and severity is Severity.ERROR else severity


def _rules_of(value: Callable, at: PyTree) -> str:
    program = jax.make_jaxpr(value)(at)
    rules = [
        operation
        for operation in between(program, range(len(jax.tree.leaves(at))))
        if operation.name in _RULES and (line := written_at(operation)) is not None
        if not of_package(line, "innerloop")
        if operation.name != "stop_gradient" or "stop_gradient" in asked_for(operation)
    ]
    return named_places(rules, "no custom rule on the way")


def _in_float64(tree: PyTree) -> PyTree:
    """The floating-point leaves in float64, as NumPy arrays, which need no compilation."""
    wide = lambda leaf: np.asarray(leaf, np.float64) if is_floating(leaf) else leaf
    return jax.tree.map(wide, tree)
