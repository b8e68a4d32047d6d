"""Values in templates: how Go prints, compares and names them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class Row:
    """One line of a listing: its fields are computed when they are asked for.

    Args:
        type_name: Go's name of the type that docker has here, for error messages.
        fields: functions of `item` by field name.
        item: what the API sent.
        methods: functions of `item` and further arguments.
    """

    __slots__ = ("fields", "item", "methods", "type_name")

    def __init__(
        self,
        type_name: str,
        fields: Mapping[str, Callable[[Any], Any]],
        item: Any,
        methods: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.type_name = type_name
        self.fields = fields
        self.item = item
        self.methods = methods or {}

    def get(self, name: str) -> Any:
        """The value of a field; KeyError when there is none of that name."""
        return self.fields[name](self.item)

    def as_dict(self) -> dict[str, Any]:
        """All fields, in the order in which Go writes a map."""
        return {name: self.fields[name](self.item) for name in sorted(self.fields)}


class NullList(list[object]):
    """A list that the API sent as null: JSON shows null, everything else an empty list."""


class NullMap(dict[str, object]):
    """A map that the API sent as null."""


def plain(value: Any) -> Any:
    """A value as JSON shows it: rows are dictionaries, and null is null."""
    if isinstance(value, NullList | NullMap):
        return None
    if isinstance(value, Row):
        return plain(value.as_dict())
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def truth(value: Any) -> bool:
    """Go's: empty strings, collections, zeros and nil are false."""
    return isinstance(value, Row) or bool(value)


def printed(value: Any, nested: bool = False) -> str:
    """Go's `%v`."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return "[" + " ".join(printed(item, True) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{printed(value[key], True)}" for key in sorted(value)) + "]"
    if isinstance(value, Row):
        return printed(value.as_dict())
    return str(value)


def number(value: float) -> str:
    """Go's `%v` of a float64: the shortest form, with an exponent below 1e-4 and from 1e21 on."""
    if value != value or value in (float("inf"), float("-inf")):
        return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[str(value)]
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    text = repr(value)
    if "e" in text:
        mantissa, _, exponent = text.partition("e")
        return (
            f"{mantissa}e{exponent[0] if exponent[0] in '+-' else '+'}{exponent.lstrip('+-').rjust(2, '0')}"
        )
    return text


def type_name(value: Any) -> str:
    """Go's name of a value's type, for error messages."""
    if isinstance(value, Row):
        return value.type_name
    for kind, name in (
        (bool, "bool"),
        (str, "string"),
        (int, "int"),
        (float, "float64"),
        (list, "[]interface {}"),
    ):
        if isinstance(value, kind):
            return name
    return "map[string]interface {}" if isinstance(value, dict) else "<nil>"
