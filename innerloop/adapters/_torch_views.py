"""Which tensors of a forward pass have their values in one memory in PyTorch.

PyTorch keeps a view, such as `x.t()`, in the memory of `x`, so a change in place of one changes the
other. torchax gives every view an array of its own, except for an index such as `x[:, 0]`, and
passes no change on. What it would not pass on is noted here, and reading it is an error.
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
    """A tensor that shares its memory with others.

    Args:
        tensor: The tensor. It is kept, so that no other object gets its `id`.
        array: The values that it had when it was last seen.
        memory: All tensors of this memory.
        parts: The parts of the memory in which it lies, a pair for each operation that divides:
            its results have one object and different numbers.
        lost: The operation that changed the memory and not this tensor, or None.
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
    """The tensors of one forward pass that share their memory with others."""

    def __init__(self, index_type: type):
        """With the type of the results of an index, such as `x[:, 0]`."""
        self.known: dict[int, _Tensor] = {}
        self._index_type = index_type

    def note_view(self, base: Any, views: Iterable[Any], *, divided: bool) -> None:
        """Notes the results of a view operation; if `divided`, they have no memory in common."""
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
        """Notes what an operation has changed in the memories of its tensors."""
        for tensor in self._of(tensors):
            for changed in tensor.memory:
                if changed.tensor.jax() is changed.array:
                    continue
                changed.array = changed.tensor.jax()
                for other in tensor.memory:
                    if other is not changed and other.overlaps(changed):
                        other.lost = operation

    def out_of_date(self, tensors: Iterable[Any]) -> _Tensor | None:
        """The first tensor that lacks a change that it would have in PyTorch, or None."""
        tensors = list(tensors)
        self.note_changes(tensors, "an assignment to its entries")
        return next((tensor for tensor in self._of(tensors) if tensor.lost is not None), None)

    def _of(self, tensors: Iterable[Any]) -> list[_Tensor]:
        owners = dict.fromkeys(id(self._owner(tensor)) for tensor in tensors)
        return [self.known[each] for each in owners if each in self.known]

    def _owner(self, tensor: Any) -> Any:
        """The tensor that has the values; those of `x[:, 0]` are those of `x`."""
        while isinstance(tensor, self._index_type):
            tensor = tensor.parent
        return tensor


@functools.cache
def makes_views(function: Any) -> bool:
    """Whether the result of an operation, such as `torch.Tensor.view`, shares its memory."""
    torch = optional_package("torch", "from_torch", "torch")
    if isinstance(function, torch._ops.OpOverload):
        return function.is_view
    packet: Any = getattr(torch.ops.aten, getattr(function, "__name__", ""), None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    return any(getattr(packet, name).is_view for name in packet.overloads())


def name_of(function: Any) -> str:
    """The name of an operation for errors, such as `mul_`."""
    return getattr(function, "overloadpacket", function).__name__


def refuse_out_of_date(tensor: _Tensor | None, reader: str) -> None:
    """Raise `StructureError` if a tensor that is read lacks a change."""
    if tensor is not None:
        raise StructureError(
            "a view and its base are one memory in PyTorch; here, a change in place of one does "
            "not change the other, which is read later",
            got=f"{tensor.lost} changes one of them, and {reader} reads the other, "
            f"{describe(tensor.array)}",
            expected="for a view z of y, an operation that is not in place, as in z = z.mul(2) for "
            "z.mul_(2), and y[...] = z.view(y.shape) where y is to change; or a change of y "
            "itself, and views of it that are made after the change",
        )
