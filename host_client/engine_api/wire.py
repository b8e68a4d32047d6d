"""JSON for the hot path: the interpreter's own C scanner and encoder without the `json` package.

`import json` loads `re` and `enum` and costs more than a whole API request; the C halves need neither. They
are internal to CPython, so anything unexpected about them falls back to `json`, with the same results.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _ScannerContext:
    """The attributes `_json.make_scanner` reads from a `json.JSONDecoder`."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner wants an attribute of this name


def _not_json(value: object) -> object:
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_scan: Any
_encode: Any
try:
    from _json import encode_basestring, make_encoder, make_scanner

    _scan = make_scanner(_ScannerContext)  # type: ignore[arg-type]
    _encode = make_encoder(None, _not_json, encode_basestring, None, ":", ",", False, False, True)
    _encode({"probe": [1, "x"]}, 0)
except (ImportError, AttributeError, TypeError):  # another interpreter, or its internals have changed
    import json

    _scan = json.JSONDecoder(strict=False).raw_decode
    _writer = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
    encode_basestring = _writer.encode
    _encode = lambda value, _level: [_writer.encode(value)]  # noqa: E731


SPACE = " \t\r\n"


def loads(text: str | bytes) -> Any:
    """The value a JSON text stands for.

    Raises:
        ValueError: the text is not one JSON value.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    values = list(scan(text))
    if len(values) != 1:
        raise ValueError("expected one JSON value")
    return values[0]


def scan(text: str) -> list[Any]:
    """All JSON values that stand one after the other in a text, as in Docker's progress streams.

    Raises:
        ValueError: something in it is not JSON.
    """
    values: list[Any] = []
    position, end = 0, len(text)
    while True:
        while position < end and text[position] in SPACE:
            position += 1
        if position == end:
            return values
        try:
            value, position = _scan(text, position)
        except (StopIteration, ValueError, SystemError):  # the last where it looks for `json`'s own error
            raise ValueError(f"not JSON at character {position}") from None
        values.append(value)


def dumps(value: object) -> str:
    """Compact JSON, keys in the order given, characters outside ASCII as they are.

    Raises:
        TypeError: something in it has no JSON form.
    """
    return "".join(_encode(value, 0))


def html_safe(text: str) -> str:
    """JSON as Go's json.Marshal writes it: the characters that mean something in HTML are escaped."""
    for character, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, escape)
    return text


def pretty(value: object, indent: str = "    ", prefix: str = "") -> str:
    """Indented JSON laid out as Go's `json.Indent` does it: empty objects and lists stay on one line."""
    inner = prefix + indent
    if isinstance(value, dict) and value:
        lines = [f"{inner}{encode_basestring(str(k))}: {pretty(v, indent, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + prefix + "}"
    if isinstance(value, list | tuple) and value:
        return "[\n" + ",\n".join(inner + pretty(v, indent, inner) for v in value) + "\n" + prefix + "]"
    return dumps(value)
