"""A bound on what one task has to say: its meta-gradient, shortened to a norm."""

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
    r"""Another estimator's meta-gradient of each task, shortened to a norm of at most c.

    $$g_i \leftarrow g_i \min\Bigl(1, \frac{c}{\lVert g_i \rVert}\Bigr)$$

    The norm is over all meta-parameters. Through long inner runs at the edge of stability,
    gradients of single tasks grow by orders of magnitude and drown all others in the mean over
    tasks (Metz et al. 2019, arXiv 1810.10180); clipping the mean, as an outer optimizer may, leaves
    it to them. What is not finite stays so.

    - `gradient`: the estimator; `norm`: c > 0

    Fidelity: biased where a task is clipped, in the weights of the tasks: each has its own
    direction. Memory and time: the estimator's. `aux.diagnostics["norm"]` is
    the norm before, per task.

    Raises `StructureError` for a norm that is not positive and finite, `DetachedError` where no
    meta-parameter reaches the loss, `GradientError` when differentiated twice or in anything but
    meta.
    """

    gradient: MetaGradient = instance(MetaGradient, what="a meta-gradient", such_as="Unroll()")
    norm: float = positive()

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Biased, beside what the estimator itself is; undefined where that is."""
        before = self.gradient.fidelity(adaptation, problem)
        if before.kind == "undefined":
            return before
        sentence = f"Each task's gradient is shortened to a norm of {self.norm}. Before: "
        return before._replace(
            kind="biased", sentence=sentence + before.sentence, derivatives=ESTIMATE
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The estimator's value, with its gradient, shortened."""
        whole = self.gradient.objective(problem, adaptation)

        def clip(gradient: PyTree) -> tuple[PyTree, dict[str, Scalar]]:
            return shorten(gradient, self.norm), {"norm": length(gradient)}

        return own_gradient(gradient_name(self), whole, clip)
