"""Meta-gradients that are not finite, or zero by accident, found by computing them."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from innerloop.checks import is_floating
from innerloop.diagnostics.checks.source import asked_for, of_package, written_at
from innerloop.diagnostics.checks.subject import NO_RULE, Subject, jit_quickly
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.diagnostics.known_values import refuse_values
from innerloop.programs import Operation, origin_of_non_finite
from innerloop.trees import leaf_names


def finite_and_not_zero(subject: Subject) -> Iterator[Finding]:
    """Checks the loss and its gradient on every given task."""
    objective = subject.objective(subject.exact)
    per_task = jax.vmap(jax.value_and_grad(objective, has_aux=True), (None, 0, 0))
    arguments = (subject.meta, subject.episodes, subject.keys)
    try:
        (losses, _), grads = jax.block_until_ready(jit_quickly(per_task)(*arguments))
    except (jax.errors.JaxRuntimeError, *NO_RULE) as error:
        _refuse_values(subject, range(subject.tasks))
        yield _raises(str(error))
        return
    counted = np.asarray(subject.weights) != 0
    bad = [_bad_tasks(leaf) & counted for leaf in jax.tree.leaves((losses, grads))]
    tasks = np.flatnonzero(np.any(bad, axis=0))
    if tasks.size:
        _refuse_values(subject, tasks[:1].tolist())
        names = ["the loss", *(f"the gradient of meta{n}" for n in leaf_names(subject.meta))]
        what = [name for name, marks in zip(names, bad, strict=True) if marks.any()]
        what[2:] = [f"{len(what) - 2} other gradients"] if len(what) > 3 else what[2:]
        title = f"not finite on {len(tasks)} of {subject.tasks} tasks: {', '.join(what)}"
        finding = _given_as_such(subject, title, int(tasks[0]))
        yield finding or _not_finite(subject, title, int(tasks[0]))
        return
    names = leaf_names(subject.meta)
    nonzero = [bool(np.any(np.asarray(leaf))) for leaf in jax.tree.leaves(grads)]
    # Computed again only if there is such a leaf.
    later = list(nonzero) if all(nonzero) else _nonzero_later(subject, per_task, nonzero)
    for name, moves in zip(names, later, strict=True):
        if not moves and name not in subject.unreached:
            yield Finding(
                Severity.WARNING,
                f"the gradient of meta{name} is zero on every task",
                f"meta{name}",
                "it is not cut off, but comes out as zero here, as behind a dead rectifier or a "
                "layer of zeros",
                "another initialisation of the leaf, or of what multiplies it",
            )


def _nonzero_later(subject: Subject, per_task: Callable, nonzero: Sequence[bool]) -> list[bool]:
    """Which gradients are not zero once the leaves of zeros that move have moved.

    The gradient of a leaf is zero as long as a leaf of zeros multiplies it, such as one factor of
    LoRA at the start. This is no fault if the leaf of zeros has a gradient itself.
    """
    leaves, treedef = jax.tree.flatten(subject.meta)
    generator = np.random.default_rng(0)
    moved = [
        jnp.asarray(1e-2 * generator.normal(size=leaf.shape), leaf.dtype)
        if moves and not np.any(np.asarray(leaf))
        else leaf
        for leaf, moves in zip(leaves, nonzero, strict=True)
    ]
    arguments = (treedef.unflatten(moved), subject.episodes, subject.keys)
    _, grads = jit_quickly(per_task)(*arguments)
    pairs = zip(nonzero, jax.tree.leaves(grads), strict=True)
    return [now or bool(np.any(np.asarray(leaf))) for now, leaf in pairs]


def _refuse_values(subject: Subject, tasks: Iterable[int]) -> None:
    """Raise an error in the values of tasks, such as a label that is not a class."""
    for task in tasks:
        refuse_values(subject.problem, subject.adaptation, subject.meta, *subject.task(task))


def _raises(message: str) -> Finding:
    lines = message.splitlines()
    ours = next((line.partition("Error: ")[2] for line in lines if " Got: " in line), lines[0])
    what, _, cure = ours.partition(" Write: ")
    return Finding(
        Severity.ERROR,
        "the meta-gradient cannot be computed",
        "at run time",
        what,
        cure or "the call that raises, by itself, on one task",
    )


def _given_as_such(subject: Subject, title: str, task: int) -> Finding | None:
    """The meta-parameters or data that are not finite as given."""
    episode, _ = subject.task(task)
    given = {"meta": subject.meta, "episodes.support": episode.support}
    given |= {"episodes.query": episode.query}
    for part, tree in given.items():
        for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
            if is_floating(leaf) and not np.all(np.isfinite(np.asarray(leaf, np.float64))):
                where = part + name if part == "meta" else f"{part}{name}, task {task}"
                return Finding(
                    Severity.ERROR,
                    title,
                    where,
                    "the given values already hold NaN or infinity",
                    "finite numbers; jnp.where(mask, x, 0) for what is missing, and a mask",
                )
    return None


def _not_finite(subject: Subject, title: str, task: int) -> Finding:
    objective, arguments = subject.objective(subject.exact), subject.task(task)
    loss = lambda meta: objective(meta, *arguments)[0]
    # The forward pass is searched first, because the backward pass repeats its numbers.
    culprit = origin_of_non_finite(loss, subject.meta)
    culprit = culprit or origin_of_non_finite(jax.grad(loss), subject.meta)
    where = f"{culprit.name} at {written_at(culprit)}" if culprit else "an operation not found"
    return Finding(
        Severity.ERROR, title, f"task {task} of {subject.tasks}: {where}", *_explained(culprit)
    )


def _explained(culprit: Operation | None) -> tuple[str, str]:
    kind = culprit.name if culprit else "the program"
    dtype = culprit.eqn.outvars[0].aval.dtype if culprit else None  # pyright: ignore
    if culprit and not {"eigh", "eig", "svd"}.isdisjoint({kind, *asked_for(culprit)}):
        cause = "eigenvalues that are equal: the derivative of their vectors divides by the "
        return f"{cause}difference", "a small perturbation of the matrix, or eigenvalues alone"
    if dtype == jnp.float16 and kind not in ("sqrt", "rsqrt", "div", "log"):
        cause = f"a number beyond {float(jnp.finfo(dtype).max):.0f}, the largest of float16"
        return cause, "bfloat16 or float32 for this computation, or a smaller scale"
    frame = written_at(culprit) if culprit else None
    if frame is not None and of_package(frame, "optax"):
        return (
            f"{kind} in the optimizer, whose derivative is not finite: a root or norm is zero, or "
            "its formula has no finite derivative",
            "eps_root=1e-8 where the optimizer has it, as in optax.adam(rate, eps_root=1e-8), or "
            "another optimizer, such as optax.sgd(rate)",
        )
    if kind in ("sqrt", "rsqrt", "div", "pow", "log", "integer_pow"):
        function = "a root or norm" if kind != "log" else "log"
        return (
            f"the derivative of {function} at zero, or a division by zero",
            "jnp.sqrt(x + 1e-12) for jnp.sqrt(x) and norms, or jnp.where on the argument of the "
            "function as well as on its result",
        )
    if kind == "gather":
        cause = "an index outside the array, such as a label that is no class: it reads NaN"
        cure = "labels from 0 to classes - 1, as numpy.unique(labels, return_inverse=True)[1]"
        return cause, cure
    if kind in ("lu", "triangular_solve", "cholesky", "custom_linear_solve"):
        cause = "a linear system that is singular, or not positive definite"
        return cause, "a ridge: matrix + 1e-3 * jnp.eye(n)"
    cause = f"{kind} made it: an overflow, or an undefined result such as inf - inf, as where a "
    cure = "a lower inner learning rate, or a bounded argument"
    return f"{cause}mask of -inf leaves nothing", cure


def _bad_tasks(leaf) -> np.ndarray:
    """The rows that hold a number that is not finite."""
    finite = np.asarray(jnp.isfinite(leaf))
    return np.asarray(~finite.reshape(len(finite), -1).all(axis=1))
