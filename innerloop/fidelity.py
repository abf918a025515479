"""How far a gradient is from the exact one, and which derivatives of it exist."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

Kind = Literal["exact", "unbiased", "biased", "undefined"]


class Derivatives(NamedTuple):
    """Which derivatives of the meta-objective exist.

    Args:
        first: Whether its gradient in meta exists, by reverse mode.
        second: Whether the derivatives of that gradient exist. `jax.hessian` computes them; if a
            loop supports no reverse mode over reverse mode, JAX raises an error.
        forward: Whether `jax.jvp` of the objective itself gives directional derivatives.
    """

    first: bool = True
    second: bool = True
    forward: bool = True


class Fidelity(NamedTuple):
    """How far a gradient is from the exact one, and which derivatives of it exist.

    Args:
        kind: "exact", "unbiased" (stochastic, and exact in expectation), "biased", or "undefined":
            the gradient does not exist, and using it raises an error.
        sentence: What is dropped or approximated, or why an undefined gradient does not exist.
        derivatives: Which derivatives exist.
        write: What to write instead of an undefined gradient.
        takes: The highest derivative of the inner loss that the gradient uses. 2: the inner
            gradient is differentiated; 1: it is not; 0: only the inner loss is differentiated, in
            the inner steps themselves.
        draws: Whether the gradient draws random numbers, so that one estimate does not show its
            error.
    """

    kind: Kind
    sentence: str
    derivatives: Derivatives = Derivatives()
    write: str = ""
    takes: int = 2
    draws: bool = False


ESTIMATE = Derivatives(second=False)
"""The derivatives of a gradient that is not the derivative of its value."""

EXACT = Fidelity("exact", "Nothing is dropped: the inner loop is differentiated as it ran.")


def undefined(reason: str, *, write: str) -> Fidelity:
    """The fidelity of a gradient that does not exist.

    Args:
        reason: Why it does not exist, as a sentence.
        write: What to write instead.

    Returns:
        A fidelity of kind "undefined".
    """
    return Fidelity("undefined", reason, Derivatives(False, False, False), write, takes=0)


def combined(parts: Iterable[Fidelity]) -> Fidelity:
    """The fidelity of a gradient that drops everything that any of its parts drops.

    Args:
        parts: The fidelities of the parts.

    Returns:
        A fidelity that is as far from exact as the worst part and has the derivatives that all
        parts have.
    """
    parts = list(parts)
    kinds = {part.kind for part in parts}
    worst = next(kind for kind in reversed(get_args(Kind)) if kind in kinds)
    said = [part for part in parts if part.kind == worst == "undefined"]
    said = said or [part for part in parts if part.kind != "exact"]
    said = said or [part for part in parts if part.sentence != EXACT.sentence] or parts
    return Fidelity(
        worst,
        " ".join(dict.fromkeys(part.sentence for part in said)),
        Derivatives(*map(all, zip(*(part.derivatives for part in parts), strict=True))),
        next((part.write for part in parts if part.write), ""),
        min(part.takes for part in parts),
        any(part.draws for part in parts),
    )
