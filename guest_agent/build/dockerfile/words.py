"""The parts of an instruction: its name, its flags, its arguments as JSON, as words, as text."""

from __future__ import annotations

import json
import re
from typing import NoReturn

from guest_agent.build.dockerfile.errors import DockerfileSyntaxError

_BLANK = re.compile(r"[\t\v\f\r ]+")
_HEREDOC_INSTRUCTIONS = ("RUN", "COPY", "ADD")


def split_command(text: str, escape: str) -> tuple[str, list[str], str]:
    """The instruction's name as written, its flags (`--…`, without quotes), and the rest."""
    name, _, arguments = _cut(text.strip())
    flags, rest = _flags(arguments, escape)
    return name, flags, rest.strip()


def may_have_heredocs(text: str, escape: str) -> bool:
    """RUN, COPY and ADD may, also behind ONBUILD, unless their arguments are JSON."""
    name, _, rest = split_command(text, escape)
    if name.upper() == "ONBUILD":
        name, _, rest = split_command(rest, escape)
    return name.upper() in _HEREDOC_INSTRUCTIONS and json_strings(rest) is None


def _cut(text: str) -> tuple[str, str, str]:
    match = _BLANK.search(text)
    return (text[: match.start()], match[0], text[match.end() :]) if match else (text, "", "")


def _flags(text: str, escape: str) -> tuple[list[str], str]:
    flags: list[str] = []
    position = 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if not text.startswith("--", position):
            return flags, text[position:]
        word, position = _flag(text, position, escape)
        if word == "--":
            return flags, text[position:]
        flags.append(word)


def _flag(text: str, position: int, escape: str) -> tuple[str, int]:
    """One word without its quotes, and where it ends."""
    characters: list[str] = []
    quote = ""
    while position < len(text):
        character = text[position]
        if character == escape:
            position += 1
            characters.append(text[position : position + 1])
        elif quote:
            if character == quote:
                quote = ""
            else:
                characters.append(character)
        elif character in "'\"":
            quote = character
        elif character.isspace():
            break
        else:
            characters.append(character)
        position += 1
    return "".join(characters), position


def json_strings(text: str) -> list[str] | None:
    """The strings of a JSON array; None: it is no JSON array, so it is the shell form.
    DockerfileSyntaxError: an array of something else."""
    text = text.lstrip()
    if not text.startswith("["):
        return None
    try:
        # A number's digits do not matter, since it is an error anyway: int() would refuse thousands of them.
        values = json.loads(text, parse_constant=_refuse, parse_int=float)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(value, str) for value in values):
        raise DockerfileSyntaxError("when using JSON array syntax, arrays must be comprised of strings only")
    return [value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for value in values]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def blank_separated(text: str) -> list[str]:
    """Split at blanks, whatever the quotes."""
    return _BLANK.split(text) if text else []


def quoted_words(text: str, escape: str) -> list[str]:
    """Words as ENV, LABEL and ARG have them: blanks in quotes and escaped ones do not split; quotes and
    escapes stay for the expansion to remove."""
    words: list[str] = []
    current: list[str] = []
    quote = ""
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == escape and quote != "'":
            if position < len(text):  # one at the very end is dropped
                current += [character, text[position]]
                position += 1
        elif quote:
            quote = "" if character == quote else quote
            current.append(character)
        elif character.isspace():
            if current:
                words.append("".join(current))
                current = []
        else:
            quote = character if character in "'\"" else ""
            current.append(character)
    return [*words, "".join(current)] if current else words


def assignments(text: str, escape: str, instruction: str) -> list[tuple[str, str, bool]]:
    """`name=value …` of ENV and LABEL, or the legacy `name value`: name, value, is it the legacy form."""
    words = quoted_words(text, escape)
    if not words:
        return []
    if "=" not in words[0]:
        name, blank, value = _cut(text)
        if not blank:
            raise DockerfileSyntaxError(f"{instruction} must have two arguments")
        return [(name, value, True)]
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise DockerfileSyntaxError(
                f"Syntax error - can't find = in {json.dumps(word, ensure_ascii=False)}. "
                "Must be of the form: name=value"
            )
        pairs.append((name, value, False))
    return pairs
