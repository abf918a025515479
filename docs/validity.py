"""Writes the table of valid pairs into docs/choose.md, from what the meta-gradients say themselves.

Run it as `python docs/validity.py`; a test holds the page to it.
"""

from pathlib import Path

import optax
import optimistix

import innerloop as il

PAGE = Path(__file__).parent / "choose.md"
BEGIN, END = "<!-- validity: begin, written by docs/validity.py -->", "<!-- validity: end -->"

ADAPTATIONS: dict[str, il.extend.Adaptation] = {
    "`GradientDescent`, K > 0": il.GradientDescent(optax.sgd(0.1), steps=5),
    "`Minimise`": il.Minimise(optimistix.BFGS(rtol=1e-6, atol=1e-6)),
    "`Procedure` and the heads": il.Procedure(lambda meta, support, key: meta),
}
GRADIENTS: dict[str, il.extend.MetaGradient] = {
    "`Unroll()`": il.Unroll(),
    "`FirstOrder()`": il.FirstOrder(),
    "`Truncated(last=2)`, K = 5": il.Truncated(last=2),
    "`ForwardMode()`": il.ForwardMode(),
    "`ForwardMode(RandomDirections(n))`": il.ForwardMode(il.gradients.RandomDirections(1)),
    "`Implicit()`": il.Implicit(),
    "`Implicit(condition=...)`": il.Implicit(condition=lambda params, meta, batch, key: params),
    "`Reptile()`": il.Reptile(),
    "`Bounded(norm)`": il.Bounded(1.0),
    "`Clipped(Unroll(), norm)`": il.Clipped(il.Unroll(), 1.0),
    "`EvolutionStrategies(...)`": il.EvolutionStrategies(pairs=1, sigma=0.1),
}


def table() -> str:
    """The fidelity of every pair, or why there is none."""
    rows = [["", *ADAPTATIONS], ["---"] * (len(ADAPTATIONS) + 1)]
    reasons: list[str] = []
    for name, gradient in GRADIENTS.items():
        rows.append([name])
        for adaptation in ADAPTATIONS.values():
            fidelity = gradient.fidelity(adaptation)
            if fidelity.kind != "undefined":
                rows[-1].append(fidelity.kind)
                continue
            reason = f"{fidelity.sentence} Write: {fidelity.write}"
            if reason not in reasons:
                reasons.append(reason)
            rows[-1].append(f"refused ({reasons.index(reason) + 1})")
    lines = [f"| {' | '.join(row)} |" for row in rows]
    numbered = [f"{i}. {reason}." for i, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *numbered])


def updated(text: str) -> str:
    """The page with the table between its markers."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
