"""Values of flags: from the text on the command line to what the API wants, with docker's words for what is
wrong.

Every converter raises ValueError with the reason only; the flag parser adds the flag's name and the text.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TRUE = ("1", "t", "T", "TRUE", "true", "True")
FALSE = ("0", "f", "F", "FALSE", "false", "False")
DIGITS = "0123456789"
SPACE = " \t"

# Go's time.ParseDuration, in nanoseconds.
DURATIONS = {
    "ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}  # fmt: skip
BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def convert(kind: str, text: str) -> Any:
    """The value that `text` stands for in a flag of this kind.

    Raises:
        ValueError: why it is not one.
    """
    return _CONVERTERS[kind](text)


def boolean(text: str) -> bool:
    """Go's strconv.ParseBool."""
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError(f"strconv.ParseBool: parsing {quoted(text)}: invalid syntax")


def integer(text: str, bits: int = 64, base: int = 0) -> int:
    """Go's strconv.ParseInt; base 0 accepts 0x, 0o, 0b, a leading 0 for octal, and underscores."""
    value = _number(text, base)
    if value is None:
        raise ValueError(f"strconv.ParseInt: parsing {quoted(text)}: invalid syntax")
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ValueError(f"strconv.ParseInt: parsing {quoted(text)}: value out of range")
    return value


def unsigned(text: str, bits: int = 64, base: int = 0) -> int:
    """Go's strconv.ParseUint."""
    value = None if text[:1] in ("+", "-") else _number(text, base)
    if value is None:
        raise ValueError(f"strconv.ParseUint: parsing {quoted(text)}: invalid syntax")
    if value >= 1 << bits:
        raise ValueError(f"strconv.ParseUint: parsing {quoted(text)}: value out of range")
    return value


def _number(text: str, base: int) -> int | None:
    if not text.isascii() or text != text.strip():
        return None
    digits = text.lstrip("+-")
    if base == 10 and "_" in text:
        return None
    if base == 0 and len(digits) > 1 and digits[0] == "0" and digits[1] in DIGITS + "_":
        base = 8  # as in C; Python would refuse it
    try:
        return int(text, base)
    except ValueError:
        return None


def size(text: str) -> int:
    """Bytes, with a binary unit: 512, 64k, 1.5g, 10MiB (go-units' RAMInBytes)."""
    last = max((text.rfind(character) for character in DIGITS + ". "), default=-1)
    if last < 0:
        raise ValueError(f"invalid size: '{text}'")
    number, suffix = (
        (text[:last], text[last + 1 :]) if text[last] == " " else (text[: last + 1], text[last + 1 :])
    )
    try:
        amount = float(number)
    except ValueError:
        raise ValueError(f"strconv.ParseFloat: parsing {quoted(number)}: invalid syntax")
    if number != number.strip():
        raise ValueError(f"strconv.ParseFloat: parsing {quoted(number)}: invalid syntax")
    if amount < 0:
        raise ValueError(f"invalid size: '{text}'")
    if not suffix:
        return int(amount)
    lower = suffix.lower()
    if lower == "b":
        return int(amount)
    if len(suffix) > 3 or lower[0] not in BINARY or lower[1:] not in ("", "b", "ib"):
        raise ValueError(f"invalid suffix: '{lower if len(suffix) <= 3 else suffix}'")
    return int(amount * BINARY[lower[0]])


def swap_size(text: str) -> int:
    """Like `size`; -1 is unlimited."""
    return -1 if text == "-1" else size(text)


def cpus(text: str) -> int:
    """Billionths of a CPU, exact: 1.5, 3/4."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = _fraction(numerator)
        if slash:
            under = _fraction(denominator)
            value = (value[0] * under[1], value[1] * under[0])
        if value[1] == 0:
            raise ValueError
    except ValueError:
        raise ValueError(f"failed to parse {text} as a rational number")
    nano, rest = divmod(value[0] * 1_000_000_000, value[1])
    if rest:
        raise ValueError("value is too precise")
    return nano


def _fraction(text: str) -> tuple[int, int]:
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, decimals = mantissa.partition(".")
    if not (whole.lstrip("+-") + decimals).isdigit() or len(whole) - len(whole.lstrip("+-")) > 1:
        raise ValueError
    power = int(exponent) if exponent else 0
    value = int((whole if whole.strip("+-") else whole + "0") + decimals)
    shift = power - len(decimals)
    return (value * 10**shift, 1) if shift >= 0 else (value, 10**-shift)


def duration(text: str) -> int:
    """Nanoseconds: 1h30m, 500ms, 0 (Go's time.ParseDuration)."""
    rest = text.lstrip("+-") if text[:1] in ("+", "-") and text[1:2] not in ("+", "-") else text
    negative = text[:1] == "-"
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(f"time: invalid duration {quoted(text)}")
    total = 0.0
    while rest:
        number = rest[: len(rest) - len(rest.lstrip(DIGITS + "."))]
        if not number.strip(".") or number.count(".") > 1:
            raise ValueError(f"time: invalid duration {quoted(text)}")
        rest = rest[len(number) :]
        unit = rest[: next((i for i, c in enumerate(rest) if c in DIGITS + "."), len(rest))]
        rest = rest[len(unit) :]
        if not unit:
            raise ValueError(f"time: missing unit in duration {quoted(text)}")
        if unit not in DURATIONS:
            raise ValueError(f"time: unknown unit {quoted(unit)} in duration {quoted(text)}")
        whole, _, decimals = number.partition(".")
        total += int(whole or "0") * DURATIONS[unit] + int(float("0." + (decimals or "0")) * DURATIONS[unit])
    return int(-total if negative else total)


def filter_pair(text: str) -> tuple[str, str] | None:
    """One `--filter`: name and value; None for an empty one."""
    if not text:
        return None
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("bad format of filter (expected name=value)")
    return name.strip().lower(), value.strip()


def pair(text: str) -> tuple[str, str]:
    """One `key=value` of a map flag."""
    key, _, value = text.partition("=")
    return key, value


def comma_list(text: str) -> list[str]:
    """A flag that takes several values with commas between them."""
    return csv_fields(text) if text else []


def csv_fields(text: str) -> list[str]:
    """The fields of one line of CSV, as Go's encoding/csv reads it: quotes allow commas, doubled quotes a
    quote.
    """
    if "\n" in text:
        text = text.partition("\n")[0].removesuffix("\r")
    if not text:
        raise ValueError("EOF")
    if '"' not in text:
        return text.split(",")
    fields, position = [], 0
    while True:
        if text[position : position + 1] != '"':
            end = text.find(",", position)
            field = text[position:] if end < 0 else text[position:end]
            if '"' in field:
                column = position + field.index('"') + 1
                raise ValueError(f'parse error on line 1, column {column}: bare " in non-quoted-field')
            fields.append(field)
            if end < 0:
                return fields
            position = end + 1
            continue
        position += 1
        field = ""
        while True:
            end = text.find('"', position)
            if end < 0:
                raise ValueError(
                    f'parse error on line 1, column {len(text) + 1}: extraneous or missing " in quoted-field'
                )
            field += text[position:end]
            position = end + 1
            if text[position : position + 1] == '"':
                field += '"'
                position += 1
                continue
            break
        fields.append(field)
        if position == len(text):
            return fields
        if text[position] != ",":
            raise ValueError(
                f'parse error on line 1, column {position}: extraneous or missing " in quoted-field'
            )
        position += 1


def address(text: str) -> str:
    """An IP address in canonical form, "" when it is none. IPv4 in IPv6 becomes IPv4, as Go prints it."""
    import _socket

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            packed = _socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        if family == _socket.AF_INET6 and packed.startswith(b"\0" * 10 + b"\xff\xff"):
            return _socket.inet_ntop(_socket.AF_INET, packed[12:])
        if family == _socket.AF_INET and any(len(part) > 1 and part[0] == "0" for part in text.split(".")):
            continue  # Go refuses leading zeros
        return _socket.inet_ntop(family, packed)
    return ""


def ip(text: str) -> str:
    """An IP address given as a flag."""
    found = address(text.strip())
    if not found and text.strip():
        raise ValueError(f"failed to parse IP: {quoted(text.strip())}")
    return found


def quoted(text: str) -> str:
    """Go's %q for ordinary text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _mount(text: str) -> Any:
    from host_client.cli.options.mounts import parse_mount

    return parse_mount(text)


def _network(text: str) -> Any:
    from host_client.cli.options.networks import parse_network

    return parse_network(text)


def _container(check: str) -> Any:
    def converter(text: str) -> Any:
        from host_client.cli.options import checks

        return getattr(checks, check)(text)

    return converter


_CONVERTERS = {
    "bool": boolean,
    "int": integer,
    "int:32": lambda text: integer(text, 64),
    "uint": unsigned,
    "uint16": lambda text: unsigned(text, 16),
    "bytes": size,
    "bytes:swap": swap_size,
    "decimal": cpus,
    "duration": duration,
    "filter": filter_pair,
    "map": pair,
    "map:sysctl": _container("sysctl"),
    "strings": comma_list,
    "string:ip": ip,
    "list:attach": _container("attach_stream"),
    "list:env": _container("environment"),
    "list:label": _container("label"),
    "list:host": _container("extra_host"),
    "list:dns": _container("dns_server"),
    "list:search": _container("dns_search"),
    "list:link": _container("link"),
    "list:device-rule": _container("device_rule"),
    "list:weight": _container("device_weight"),
    "list:rate": _container("device_rate"),
    "list:iops": _container("device_operations"),
    "ulimit": _container("ulimit"),
    "list:gpus": _container("gpus"),
    "mount": _mount,
    "network": _network,
}
