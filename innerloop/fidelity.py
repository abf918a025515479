"""How far a gradient is from the exact one, and which derivatives of it exist."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

Kind = Literal["exact", "unbiased", "biased", "undefined"]


class Derivatives(NamedTuple):
    """Which derivatives of the meta-objective exist.

    Args:
        first: its gradient in meta, by reverse mode
        second: derivatives of that gradient. `jax.hessian` takes them; where a loop supports no
            reverse mode over reverse mode, JAX says so.
        forward: directional derivatives by `jax.jvp` straight over the objective
    """

    first: bool = True
    second: bool = True
    forward: bool = True


class Fidelity(NamedTuple):
    """How far a gradient is from the exact one, and which derivatives of it exist.

    Args:
        kind: "exact", "unbiased" (stochastic, right on average), "biased", or "undefined": there is
            no such gradient, and whoever asks for it is refused
        sentence: what is dropped or approximated; of an undefined gradient, why there is none
        derivatives: which derivatives exist
        write: of an undefined gradient, what to write instead
        takes: the highest derivative of the inner loss that the gradient is made of. 2: the inner
            gradient is differentiated; 1: it is not; 0: nothing is differentiated but the inner
            loss, in the inner steps themselves.
        draws: whether random numbers are drawn for it, so that one estimate does not tell its error
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


def undefined(reason: str, write: str) -> Fidelity:
    """The fidelity of a gradient that does not exist.

    Args:
        reason: why it does not exist, as a sentence
        write: what to write instead
    """
    return Fidelity("undefined", reason, Derivatives(False, False, False), write, takes=0)


def combined(parts: Iterable[Fidelity]) -> Fidelity:
    """The fidelity of a gradient that drops what any of its parts drops.

    It is as far from exact as the worst part, and has the derivatives that all parts have.
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
