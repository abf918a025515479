"""Constructors in the reference: those of Equinox modules and named tuples, from their fields.

Griffe reads the source without running it, and knows the constructors of plain dataclasses alone.
"""

import griffe

SPECIFIERS = ("equinox.field", "innerloop.arguments.")
"""Calls that declare a field. What stands as its default is their keyword `default`."""

SELF = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)


class Signatures(griffe.Extension):
    """Gives every class with annotated fields the `__init__` that is made of them."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Visit the package once it is read."""
        visit(pkg)


def visit(node: griffe.Module | griffe.Class) -> None:
    """Every class below `node`."""
    for member in list(node.members.values()):
        if member.is_alias:
            continue
        if member.is_class:
            add_constructor(member)
        if member.is_class or member.is_module:
            visit(member)


def add_constructor(cls: griffe.Class) -> None:
    """`__init__` from the fields, in their order; without fields, only where a call makes sense."""
    fields = [field(member) for member in cls.members.values() if member.is_attribute]
    fields = [parameter for parameter in fields if parameter is not None]
    if (fields or is_concrete_module(cls)) and "__init__" not in cls.members:
        init = griffe.Function("__init__", parameters=griffe.Parameters(SELF, *fields), parent=cls)
        cls.set_member("__init__", init)


def is_concrete_module(cls: griffe.Class) -> bool:
    """Whether it derives from another class and leaves no method abstract."""
    bases = {str(base).rpartition(".")[2] for base in cls.bases}
    methods = [member for member in cls.members.values() if member.is_function]
    abstract = any("abstractmethod" in method.labels for method in methods)
    return bool(bases - {"Exception", "Enum", "Protocol"}) and not abstract


def field(member: griffe.Attribute) -> griffe.Parameter | None:
    """A field as a parameter; None where it is none."""
    if member.annotation is None or "property" in member.labels:
        return None
    default = member.value
    if isinstance(default, griffe.ExprCall) and default.canonical_path.startswith(SPECIFIERS):
        options = {
            option.name: option.value
            for option in default.arguments
            if isinstance(option, griffe.ExprKeyword)
        }
        if str(options.get("init")) == "False":
            return None
        of_itself = "None" if default.canonical_path == "innerloop.arguments.optional" else None
        default = options.get("default", of_itself)
    return griffe.Parameter(
        member.name,
        annotation=member.annotation,
        kind=griffe.ParameterKind.positional_or_keyword,
        default=default,
    )
