"""A meta-gradient whose norm is bounded for each task."""

from jaxtyping import PyTree, Scalar

from innerloop.adaptation import Adaptation
from innerloop.arguments import instance, positive
from innerloop.fidelity import ESTIMATE, Fidelity
from innerloop.gradients.base import MetaGradient, TaskObjective
from innerloop.gradients.names import gradient_name
from innerloop.gradients.surrogate import own_gradient
from innerloop.problem import Problem
from innerloop.trees import length, shorten


class Clipped(MetaGradient):
    r"""Another meta-gradient, shortened to a norm of at most c for each task.

    $$g_i \leftarrow g_i \min\Bigl(1, \frac{c}{\lVert g_i \rVert}\Bigr)$$

    The norm is over all meta-parameters. Through long inner runs at the edge of stability, the
    gradients of single tasks grow by orders of magnitude and dominate the mean over tasks (Metz
    et al. 2019, arXiv 1810.10180). They still dominate it if the mean is clipped, as an outer
    optimizer may do. Numbers that are not finite stay so. `aux.diagnostics["norm"]` is the norm
    before clipping, per task.

    Fidelity: biased if a task is clipped, in the weights of the tasks; the gradient of each task
    keeps its direction. Memory and time: those of `gradient`.

    Args:
        gradient: The meta-gradient that is shortened.
        norm: The largest norm c > 0.

    Raises:
        StructureError: If the norm is not positive and finite.
        DetachedError: If no meta-parameter reaches the loss.
        GradientError: If differentiated twice or in anything but meta.
    """

    gradient: MetaGradient = instance(MetaGradient, what="a meta-gradient", such_as="Unroll()")
    norm: float = positive()

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Biased, in addition to the fidelity of `gradient`; undefined if that is undefined."""
        before = self.gradient.fidelity(adaptation, problem)
        if before.kind == "undefined":
            return before
        sentence = f"Each task's gradient is shortened to a norm of {self.norm}. Before: "
        return before._replace(
            kind="biased", sentence=sentence + before.sentence, derivatives=ESTIMATE
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The objective of `gradient`, with its gradient shortened."""
        whole = self.gradient.objective(problem, adaptation)

        def clip(gradient: PyTree) -> tuple[PyTree, dict[str, Scalar]]:
            return shorten(gradient, self.norm), {"norm": length(gradient)}

        return own_gradient(gradient_name(self), whole, clip)
