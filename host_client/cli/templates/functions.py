"""The functions of templates: Go's, and docker's json, split, join, title, lower, upper, pad, truncate."""

from __future__ import annotations

from host_client.cli.templates.values import Row, plain, printed, truth, type_name
from host_client.engine_api.wire import dumps, html_safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class FunctionError(Exception):
    """A function cannot take its arguments."""


def _text(value: Any, function: str) -> str:
    if isinstance(value, str):
        return value
    raise FunctionError(f"wrong type for value; expected string; got {type_name(value)}")


def _json(value: Any) -> str:
    text = dumps(plain(value))
    return html_safe(text) if isinstance(value, Row) else text


def _join(items: Any, separator: str = "") -> str:
    if items is None:
        return ""
    if isinstance(items, dict):
        return separator.join(sorted(printed(item) for item in items.values()))
    if not isinstance(items, list | tuple):
        raise FunctionError(f"error calling join: expected slice, got {type_name(items)}")
    return separator.join(printed(item) for item in items)


def _title(text: Any) -> str:
    words, start = [], True
    for character in _text(text, "title"):
        words.append(character.upper() if start else character)
        start = character.isspace()
    return "".join(words)


def _pad(text: Any, before: int, after: int) -> str:
    return " " * before + text + " " * after if _text(text, "pad") else ""


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None:
            raise FunctionError("error calling index: index of untyped nil")
        if isinstance(value, dict):
            if not isinstance(key, str):
                raise FunctionError(f"error calling index: value has type {type_name(key)}; should be string")
            value = value.get(key, "" if _holds_text(value) else None)
        elif isinstance(value, list | tuple | str):
            if isinstance(key, bool) or not isinstance(key, int):
                raise FunctionError(
                    f"error calling index: cannot index slice/array with type {type_name(key)}"
                )
            if not 0 <= key < len(value):
                raise FunctionError(f"error calling index: index out of range: {key}")
            value = value[key]
        else:
            raise FunctionError(f"error calling index: can't index item of type {type_name(value)}")
    return value


def _holds_text(value: dict[str, Any]) -> bool:
    return bool(value) and all(isinstance(item, str) for item in value.values())


def _slice(value: Any, *bounds: int) -> Any:
    if not isinstance(value, str | list | tuple):
        raise FunctionError(f"error calling slice: can't slice item of type {type_name(value)}")
    start = bounds[0] if bounds else 0
    end = bounds[1] if len(bounds) > 1 else len(value)
    if not 0 <= start <= end <= len(value):
        raise FunctionError(f"error calling slice: index out of range: {max(start, end)}")
    return value[start:end]


def _len(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, list | tuple | dict):
        return len(value)
    raise FunctionError(f"error calling len: len of type {type_name(value)}")


def _comparable(first: Any, second: Any, function: str) -> None:
    numbers = isinstance(first, int | float) and isinstance(second, int | float)
    flags = isinstance(first, bool) == isinstance(second, bool)
    if not (isinstance(first, str) and isinstance(second, str)) and not (numbers and flags):
        raise FunctionError(f"error calling {function}: incompatible types for comparison")


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise FunctionError("error calling eq: missing argument for comparison")
    for other in others:
        if first is not None and other is not None:
            _comparable(first, other, "eq")
    return any(first == other for other in others)


def _ordered(function: str, test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(first: Any, second: Any) -> bool:
        _comparable(first, second, function)
        return test(first, second)

    return compare


def _sprint(*values: Any) -> str:
    text = ""
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            text += " "
        text += printed(value)
    return text


def _html(*values: Any) -> str:
    text = _sprint(*values)
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;"), ("'", "&#39;")):
        text = text.replace(character, entity)
    return text


def _query(*values: Any) -> str:
    from host_client.engine_api.client import quote

    return quote(_sprint(*values), " ").replace(" ", "+")


def sprintf(layout: Any, *values: Any) -> str:
    """Go's Sprintf for the verbs that make sense here: %v %s %q %d %t %x %X %o %b %c %f %e %g %T and %%."""
    text, position, used = "", 0, 0
    layout = _text(layout, "printf")
    while position < len(layout):
        character = layout[position]
        position += 1
        if character != "%":
            text += character
            continue
        start = position
        while position < len(layout) and layout[position] in "+-# 0123456789.*":
            position += 1
        options, verb = layout[start:position], layout[position : position + 1]
        position += 1
        if verb == "%":
            text += "%"
            continue
        if not verb:
            return text + "%!(NOVERB)"
        if used >= len(values):
            text += f"%!{verb}(MISSING)"
            continue
        text += _verb(options, verb, values[used])
        used += 1
    if used < len(values):
        extra = ", ".join(f"{type_name(value)}={printed(value)}" for value in values[used:])
        text += f"%!(EXTRA {extra})"
    return text


def _verb(options: str, verb: str, value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if verb == "T":
        return type_name(value)
    if verb == "q" and isinstance(value, str):
        from host_client.cli.values import quoted

        value, verb = quoted(value), "s"
    elif verb in "xX" and isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape").hex()
        value, verb = (value.upper() if verb == "X" else value), "s"
    elif (
        verb == "v"
        or (verb == "s" and not whole and not isinstance(value, float | bool))
        or (verb == "t" and isinstance(value, bool))
    ):
        value, verb = printed(value), "s"
    elif verb == "b" and whole:
        value, verb = f"{value:b}", "s"
    elif verb == "c" and whole:
        value, verb = chr(value), "s"
    elif not ((verb in "dxXo" and whole) or (verb in "feEgG" and isinstance(value, float))):
        return f"%!{verb}({type_name(value)}={printed(value)})"
    if verb == "s":
        options = options.replace("0", " ", 1) if options.startswith("0") else options
    return ("%" + options.replace("*", "") + verb) % (value,)


def _logical(value: Any) -> bool:
    return truth(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": _json,
    "split": lambda text, separator: _text(text, "split").split(separator) if separator else list(text),
    "join": _join,
    "title": _title,
    "lower": lambda text: _text(text, "lower").lower(),
    "upper": lambda text: _text(text, "upper").upper(),
    "pad": _pad,
    "truncate": lambda text, length: _text(text, "truncate")[:length],
    "index": _index,
    "slice": _slice,
    "len": _len,
    "not": lambda value: not _logical(value),
    "eq": _eq,
    "ne": lambda first, second: not _eq(first, second),
    "lt": _ordered("lt", lambda first, second: first < second),
    "le": _ordered("le", lambda first, second: first <= second),
    "gt": _ordered("gt", lambda first, second: first > second),
    "ge": _ordered("ge", lambda first, second: first >= second),
    "print": _sprint,
    "println": lambda *values: " ".join(printed(value) for value in values) + "\n",
    "printf": sprintf,
    "html": _html,
    "js": lambda *values: _sprint(*values).replace("\\", "\\\\").replace("'", "\\'").replace('"', '\\"'),
    "urlquery": _query,
}

# In the heading of a table these leave the column's name alone.
UNCHANGED_IN_HEADER = ("json", "split", "join", "title", "lower", "upper", "truncate")

__all__ = ["FUNCTIONS", "UNCHANGED_IN_HEADER", "FunctionError", "Row", "sprintf"]
