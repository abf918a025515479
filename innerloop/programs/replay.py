"""A function as a traced program, whose closed-over values are arguments."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import AbstractMesh, NamedSharding
from jaxtyping import PyTree


class Traced(NamedTuple):
    """A traced function.

    Attributes:
        closed: The program, with the values that the function closes over.
        result: The tree structure of its result.
    """

    closed: core.ClosedJaxpr
    result: Any

    @property
    def constants(self) -> list:
        """The values that the function closes over."""
        return self.closed.consts

    def __call__(self, constants: Sequence, *args: PyTree) -> PyTree:
        """Run the program, operation by operation.

        Args:
            constants: The values to use in place of those that the function closes over.
            *args: The arguments, with the structure and shapes of the trace.

        Returns:
            The result.
        """
        run = core.jaxpr_as_fun(core.ClosedJaxpr(self.closed.jaxpr, list(constants)))
        leaves = map(jnp.asarray, run(*jax.tree.leaves(args)))  # a literal is a NumPy scalar
        return jax.tree.unflatten(self.result, leaves)


def traced(function: Callable, *args: PyTree) -> Traced:
    """Trace a function, with arrays or their shapes as arguments."""
    program, result = jax.make_jaxpr(function, return_shape=True)(*args)
    return Traced(program, jax.tree.structure(result))


def traced_without_mesh(function: Callable, *args: PyTree) -> Traced:
    """`traced`, with types that name no mesh, so that the program can be run in any mesh.

    In JAX, the type of a value names the mesh that the value is on, and a traced program holds the
    types of all its values. Inside `shard_map`, the mesh is a different one.
    """
    bare = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type)
    args = jax.tree.map(bare, jax.eval_shape(lambda args: args, args))
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        program = traced(function, *args)
        context = jax.make_jaxpr(jax.lax.neg)(1.0).eqns[0].ctx
    jaxpr = _WithoutMesh(context, {}, {}).program(program.closed.jaxpr)
    return program._replace(closed=core.ClosedJaxpr(jaxpr, program.constants))


class _WithoutMesh(NamedTuple):
    """Removes the mesh from programs.

    `context` is the context that JAX keeps with an operation that is traced without a mesh; `atoms`
    and `programs` map what was rewritten already to the result.
    """

    context: Any
    atoms: dict[Any, Any]
    programs: dict[core.Jaxpr, core.Jaxpr]

    def program(self, jaxpr: core.Jaxpr) -> core.Jaxpr:
        """The rewritten program. If it occurs twice, it stays one program and is compiled once."""
        if jaxpr not in self.programs:
            self.programs[jaxpr] = jaxpr.replace(
                constvars=self.all(jaxpr.constvars),
                invars=self.all(jaxpr.invars),
                outvars=self.all(jaxpr.outvars),
                eqns=list(map(self.operation, jaxpr.eqns)),
            )
        return self.programs[jaxpr]

    def operation(self, eqn: core.JaxprEqn) -> core.JaxprEqn:
        params = {name: self.param(value) for name, value in eqn.params.items()}
        ins, outs = self.all(eqn.invars), self.all(eqn.outvars)
        context = eqn.ctx if eqn.ctx.cur_abstract_mesh.empty else self.context
        return eqn.replace(invars=ins, outvars=outs, params=params, ctx=context)

    def param(self, value: Any) -> Any:
        match value:
            case core.ClosedJaxpr():
                return core.ClosedJaxpr(self.program(value.jaxpr), value.consts)
            case core.Jaxpr():
                return self.program(value)
            case NamedSharding(mesh=AbstractMesh()):
                return None
            case tuple() if hasattr(value, "_fields"):
                return type(value)(*map(self.param, value))
            case tuple() | list():
                return type(value)(map(self.param, value))
        return value

    def all(self, atoms: Sequence) -> list:
        return list(map(self.atom, atoms))

    def atom(self, atom: Any) -> Any:
        sharding = getattr(atom.aval, "sharding", None)
        if sharding is None or sharding.mesh.empty:
            return atom
        if isinstance(atom, core.Literal):
            return core.Literal(np.asarray(atom.val), atom.aval.update(sharding=None))
        if atom not in self.atoms:
            self.atoms[atom] = core.Var(atom.aval.update(sharding=None))
        return self.atoms[atom]
