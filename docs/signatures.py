"""Constructors in the reference: those of Equinox modules and named tuples, from their fields.

Griffe reads the source without running it, and knows the constructors of plain dataclasses alone.
"""

import griffe

MADE = "made of fields"
"""Label of the constructors that are added here."""

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
    written = (each.members.get("__init__") for each in [cls, *cls.mro()])
    if any(init is not None and MADE not in init.labels for init in written):
        return
    found: dict[str, griffe.Parameter | None] = {}
    for each in [*reversed(cls.mro()), cls]:  # a field keeps its place where it is declared again
        members = each.members.values()
        found |= {m.name: field(m) for m in members if m.is_attribute and is_field(m)}
    fields = [parameter for parameter in found.values() if parameter is not None]
    fields.sort(key=lambda parameter: parameter.kind is griffe.ParameterKind.keyword_only)
    if fields or is_concrete_module(cls):
        init = griffe.Function("__init__", parameters=griffe.Parameters(SELF, *fields), parent=cls)
        init.labels.add(MADE)
        cls.set_member("__init__", init)


def is_field(member: griffe.Attribute) -> bool:
    """Whether it is set by the constructor. Griffe marks a `ClassVar` as of the class alone, and
    abstract variables are declared so.
    """
    return member.annotation is not None and "instance-attribute" in member.labels


def is_concrete_module(cls: griffe.Class) -> bool:
    """Whether it derives from another class and leaves no method abstract."""
    bases = {str(base).rpartition(".")[2] for base in cls.bases}
    methods = [member for member in cls.members.values() if member.is_function]
    abstract = any("abstractmethod" in method.labels for method in methods)
    return bool(bases - {"Exception", "Enum", "Protocol"}) and not abstract


def declares(call: griffe.ExprCall) -> bool:
    """Whether a call declares a field: `eqx.field` or one of the package's own functions.

    What stands as the field's default is its keyword `default`.
    """
    room, _, name = call.canonical_path.rpartition(".")
    return call.canonical_path == "equinox.field" or (
        room.startswith("innerloop") and name.islower()
    )


def field(member: griffe.Attribute) -> griffe.Parameter | None:
    """A field as a parameter; None where it is none."""
    default, options = member.value, {}
    if isinstance(default, griffe.ExprCall) and declares(default):
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
        kind=griffe.ParameterKind.keyword_only
        if str(options.get("kw_only")) == "True"
        else griffe.ParameterKind.positional_or_keyword,
        default=default,
    )
