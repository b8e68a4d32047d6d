"""JSON request bodies, decoded into msgspec types with the tolerance of Go's decoder that clients rely on.

Go matches field names without regard to case, takes `null` for "leave the default", and ignores unknown
fields.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from guest_agent.errors import InvalidParameter

_MIN_INT, _MAX_INT = -(1 << 63), (1 << 63) - 1

T = TypeVar("T")


def decode(body: bytes, content_type: str, type: type[T], optional: bool = False) -> T:
    """Decodes a request body into `type`. Raises InvalidParameter in dockerd's words, naming the field."""
    if not body.strip():
        if optional:
            return msgspec.convert({}, type)
        raise InvalidParameter("invalid JSON: got EOF while reading request body")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidParameter(
            f"unsupported Content-Type header ({content_type}): must be 'application/json'",
        )
    try:
        value = msgspec.json.decode(body)
        wanted: Any = type
        return msgspec.convert({} if value is None else _fit(value, _shape(wanted)), type)
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise InvalidParameter(f"invalid JSON: {error}")


@lru_cache(maxsize=256)
def _shape(type: Hashable) -> inspect.Type:
    return inspect.type_info(type)


@lru_cache(maxsize=256)
def _fields(struct: Hashable) -> dict[str, tuple[str, inspect.Type]]:
    """Lower-case field name → its exact name and its type."""
    shape = _shape(struct)
    assert isinstance(shape, inspect.StructType)
    return {field.encode_name.lower(): (field.encode_name, field.type) for field in shape.fields}


def _fit(value: Any, shape: inspect.Type) -> Any:
    if isinstance(shape, inspect.UnionType):
        options = [option for option in shape.types if not isinstance(option, inspect.NoneType)]
        return _fit(value, options[0]) if len(options) == 1 else value
    if isinstance(value, dict):
        if isinstance(shape, inspect.StructType):
            fields = _fields(shape.cls)
            fitted = {}
            for name, item in value.items():
                exact, type = fields.get(name.lower(), (name, inspect.AnyType()))
                if item is not None and (exact not in fitted or exact == name):
                    fitted[exact] = _fit(item, type)
            return fitted
        if isinstance(shape, inspect.DictType):
            # A null in a map is a present key with Go's zero value: {"80/tcp": null} declares a port.
            empty = _zero(shape.value_type)
            return {
                name: empty if item is None else _fit(item, shape.value_type) for name, item in value.items()
            }
    elif isinstance(value, list) and isinstance(shape, inspect.ListType):
        return [_fit(item, shape.item_type) for item in value]
    elif isinstance(value, int) and not _MIN_INT <= value <= _MAX_INT:
        # Go's int64: clients could not read it back.
        raise InvalidParameter(f"invalid JSON: number {value} is out of range")
    return value


def _zero(shape: inspect.Type) -> Any:
    if isinstance(shape, inspect.StructType | inspect.DictType):
        return {}
    if isinstance(shape, inspect.ListType):
        return []
    if isinstance(shape, inspect.StrType):
        return ""
    return None
