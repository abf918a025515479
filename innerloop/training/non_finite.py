"""What happens at an outer step whose loss, meta-gradient or model state is not finite."""

from typing import Any, NamedTuple

import equinox as eqx

from innerloop.arguments import CheckedModule, at_least, positive
from innerloop.errors import InnerloopError, RunError


class NonFinite(CheckedModule):
    """A policy for outer steps whose loss, meta-gradient or model state is not finite.

    Args:
        in_a_row: How many such steps may follow each other; one more ends the run. The state before
            it is saved, so that the run goes on from there, under another policy if need be.
        norm: None leaves meta-parameters and optimizer as they were. A number clips each task's
            gradient to this norm, leaves out those that are not finite, and steps along their mean.
    """

    in_a_row: eqx.AbstractVar[int]
    norm: eqx.AbstractVar[float | None]


class Stop(NonFinite):
    """End the run at the first such step."""

    in_a_row: int = eqx.field(default=0, init=False)
    norm: float | None = eqx.field(default=None, init=False)


class Skip(NonFinite):
    """Go on with the next step's tasks.

    Args:
        in_a_row: How many such steps may follow each other.
    """

    in_a_row: int = at_least(1, default=10)
    norm: float | None = eqx.field(default=None, init=False)


class Clip(NonFinite):
    r"""Step along $\frac{1}{W} \sum_i w_i\, g_i \min(1, c / \lVert g_i \rVert)$.

    Tasks whose loss, gradient $g_i$ or model state is not finite count as zero; W is the sum of all
    weights. The model state stays as it was.

    Args:
        norm: c, the largest norm of a task's gradient.
        in_a_row: How many such steps may follow each other.
    """

    norm: float = positive(default=1.0)
    in_a_row: int = at_least(1, default=10)


def in_a_step(error: InnerloopError, step: int) -> RunError:
    """The error that ends a run at this outer step, from an error in the values of the tasks."""
    got = f"{error.got}, at outer step {step}"
    return RunError(error.problem, got=got, expected=error.expected, write=error.write)


class Fault(NamedTuple):
    """An outer step whose loss, meta-gradient or model state was not finite.

    `tasks_of_step` gives the same tasks and keys again.

    Attributes:
        step: Its number, the first being 0.
        loss: The loss, as it came out.
        tasks: The places in the batch of the tasks that caused it; for an estimator with parts,
            pairs of the part's name and the place. Empty if each task is finite when it is computed
            alone.
        keys: The keys that these tasks were learned with, as numbers.
        policy: The name of the policy.
        ends: Whether the run ends here.
        why: The error in the values of the tasks that explains the fault, such as a label that is
            not a class; None if no such error is found or the run continues.
    """

    step: int
    loss: float
    tasks: tuple[Any, ...]
    keys: tuple[list[int], ...]
    policy: str
    ends: bool
    why: InnerloopError | None = None

    def error(self) -> RunError:
        """The error that ends a run."""
        if self.why is not None:
            return in_a_step(self.why, self.step)
        causes = ", ".join(
            f"task {task} with key {key}" for task, key in zip(self.tasks, self.keys, strict=True)
        )
        return RunError(
            "the loss, the meta-gradient or the model state is no longer finite",
            got=f"a loss of {self.loss} at outer step {self.step}, caused by "
            + (
                causes
                or "no single task: each is finite when it is computed alone, but their weighted "
                "mean is not, as with weights of sum 0 or an overflow"
            ),
            expected="finite losses, gradients and model states",
            write="fit(..., non_finite=Skip(in_a_row=100)) (--non-finite skip), or "
            f"tasks_of_step(estimator, key, {self.step}), which gives the tasks of that step",
        )
