"""A record of the tensors in a forward pass that would share memory in PyTorch.

In PyTorch, a view such as `x.t()` shares the memory of `x`, so an in-place operation on one changes
the other. torchax gives every view its own array, except for an index such as `x[:, 0]`, and does
not propagate in-place changes. This module records the tensors that miss a change. Reading such a
tensor is an error.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from jaxtyping import Array

from innerloop.checks import describe, optional_package
from innerloop.errors import StructureError


@dataclasses.dataclass(eq=False)
class _Tensor:
    """A tensor that would share its memory with others in PyTorch.

    Args:
        tensor: The tensor. This reference prevents that another object gets its `id`.
        array: The values of the tensor when it was last seen.
        memory: All tensors that share this memory.
        parts: The part of the memory that the tensor covers: one pair for each operation that
            divided the memory. The first entry identifies the operation, and the second one is the
            index of the result.
        lost: The operation that changed the memory but not this tensor, or None.
    """

    tensor: Any
    array: Array
    memory: list["_Tensor"]
    parts: tuple[tuple[object, int], ...]
    lost: str | None = None

    def overlaps(self, other: "_Tensor") -> bool:
        pairs = zip(self.parts, other.parts, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        return first is None or first[0][0] is not first[1][0]


class Memories:
    """The tensors of one forward pass that would share their memory with others in PyTorch."""

    def __init__(self, index_type: type):
        """Takes the type that torchax returns for an index such as `x[:, 0]`."""
        self.known: dict[int, _Tensor] = {}
        self._index_type = index_type

    def note_view(self, base: Any, views: Iterable[Any], *, divided: bool) -> None:
        """Records the results of a view operation. If `divided`, the results do not overlap."""
        owner = self._owner(base)
        operation = object()
        for i, view in enumerate(views):
            if id(view) in self.known or view is owner:
                continue
            if id(owner) not in self.known:
                self._add(_Tensor(owner, owner.jax(), [], ()))
            whole = self.known[id(owner)]
            parts = (*whole.parts, (operation, i)) if divided else whole.parts
            self._add(_Tensor(view, view.jax(), whole.memory, parts, whole.lost))

    def _add(self, tensor: _Tensor) -> None:
        self.known[id(tensor.tensor)] = tensor
        tensor.memory.append(tensor)

    def note_changes(self, tensors: Iterable[Any], operation: str) -> None:
        """Records the changes that an operation has made to the memory of its tensors."""
        for tensor in self._of(tensors):
            for changed in tensor.memory:
                if changed.tensor.jax() is changed.array:
                    continue
                changed.array = changed.tensor.jax()
                for other in tensor.memory:
                    if other is not changed and other.overlaps(changed):
                        other.lost = operation

    def out_of_date(self, tensors: Iterable[Any]) -> _Tensor | None:
        """Returns the first tensor that lacks a change that PyTorch would have made, or None."""
        tensors = list(tensors)
        self.note_changes(tensors, "an assignment to its entries")
        return next((tensor for tensor in self._of(tensors) if tensor.lost is not None), None)

    def _of(self, tensors: Iterable[Any]) -> list[_Tensor]:
        owners = dict.fromkeys(id(self._owner(tensor)) for tensor in tensors)
        return [self.known[each] for each in owners if each in self.known]

    def _owner(self, tensor: Any) -> Any:
        """Returns the tensor that owns the values; for an index such as `x[:, 0]`, this is `x`."""
        while isinstance(tensor, self._index_type):
            tensor = tensor.parent
        return tensor


@functools.cache
def makes_views(function: Any) -> bool:
    """Returns whether an operation, such as `torch.Tensor.view`, returns views of its argument."""
    torch = optional_package("torch", "from_torch", "torch")
    if isinstance(function, torch._ops.OpOverload):
        return function.is_view
    packet: Any = getattr(torch.ops.aten, getattr(function, "__name__", ""), None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    return any(getattr(packet, name).is_view for name in packet.overloads())


def name_of(function: Any) -> str:
    """Returns the name of an operation for error messages, such as `mul_`."""
    return getattr(function, "overloadpacket", function).__name__


def refuse_out_of_date(tensor: _Tensor | None, reader: str) -> None:
    """Raises `StructureError` if a tensor that is read lacks a change."""
    if tensor is not None:
        raise StructureError(
            "a view and its base share one memory in PyTorch; here, an in-place change of one does "
            "not change the other, which is read afterwards",
            got=f"{tensor.lost} changes one of them, and {reader} reads the other, "
            f"{describe(tensor.array)}",
            expected="for a view z of y, an operation that is not in place, such as z = z.mul(2) "
            "instead of z.mul_(2), followed by y[...] = z.view(y.shape) if y must change too; or "
            "a change of y itself, with views that are made after the change",
        )
